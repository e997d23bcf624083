"""Nothing secret survives masking, whatever stands around it; a training log stays readable."""

from __future__ import annotations

import base64
import random
import string
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainguard.core.masking import MASK, Masker, mask

ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"


def text_of(alphabet: str, length: int) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=length, max_size=length)


def opaque(length: int) -> st.SearchStrategy[str]:
    """Random letters and digits with at least one digit and mixed case, as issuers make them."""
    return text_of(ALNUM, length).map(lambda body: "x7Q" + body[3:])


ISSUED = st.one_of(
    text_of(string.ascii_uppercase + string.digits, 16).map("AKIA{}".format),
    text_of(string.ascii_uppercase + string.digits, 16).map("ASIA{}".format),
    opaque(36).map("ghp_{}".format),
    opaque(60).map("github_pat_11AAAAAAA0{}".format),
    opaque(20).map("glpat-{}".format),
    opaque(24).map("xoxb-123456789012-{}".format),
    opaque(34).map("hf_{}".format),
    opaque(48).map("sk-{}".format),
    opaque(48).map("sk-proj-{}".format),
    opaque(80).map("sk-ant-api03-{}".format),
    opaque(36).map("npm_{}".format),
    opaque(60).map("pypi-AgEIcHlwaS5vcmc{}".format),
    text_of(ALNUM + "-_", 35).map("AIza{}".format),
    opaque(40).map("ya29.{}".format),
    text_of(ALNUM + "+/", 86).map("{}==".format),
    st.tuples(opaque(24), opaque(40), opaque(43)).map(lambda part: f"eyJ{part[0]}.eyJ{part[1]}.{part[2]}"),
    opaque(24).map("https://hooks.slack.com/services/T00000000/B00000000/{}".format),
)
PASSWORD = st.text(ALNUM + "!#$%*+-./?^_~", min_size=6, max_size=30).map(lambda body: "pW3" + body)
NAMED_CONTEXTS = (
    "password={}",
    "password: {}",
    'password="{}"',
    "'password': '{}'",
    '{{"db": {{"password": "{}"}}}}',
    '{{\\"password\\": \\"{}\\"}}',
    "Config(host=1, password='{}', lr=0.1)",
    "PGPASSWORD={} psql -h db",
    "export DB_PASSWORD={}",
    "cmd --password {} --lr 0.1",
    "cmd --db-password={} --lr 0.1",
    "RUNAI_CLIENT_SECRET={}",
    '"clientSecret": "{}"',
    "  client_secret: {}",
    "passwd := {}",
    "\x1b[1mpassword\x1b[0m=\x1b[31m{}\x1b[0m",
    "machine api.example login me password {}",
    "machine api.example\n  login me\n  password {}",
    "mysql://root:{}@db.example/x",
)
TOKEN_CONTEXTS = (
    "Authorization: Bearer {}",
    "authorization: token {}",
    "-H 'Authorization: Bearer {}'",
    '"Authorization": "Basic {}"',
    "got header Bearer {} from proxy",
    "Cookie: sid={}; path=/",
    "Set-Cookie: session={}",
    '"token": "{}"',
    "    token: {}",
    "    client-key-data: {}",
    "HF_TOKEN={}",
    "VAST_API_KEY={}",
    "'MY_SERVICE_KEY': '{}'",
    "vastai set api-key {}",
    "AWS_SECRET_ACCESS_KEY={}",
    "aws_session_token = {}",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={};EndpointSuffix=core.windows.net",
    "https://a.blob.core.windows.net/c?sv=2022&sig={}&se=2026",
    "https://bucket.s3.amazonaws.com/k?X-Amz-Credential=x&X-Amz-Signature={}",
    "https://{}@github.com/a/b.git",
    "https://x-access-token:{}@github.com/a/b.git",
    "//registry.npmjs.org/:_authToken={}",
    "environ({{'PATH': '/bin', 'WANDB_API_KEY': '{}'}})",
    "X-API-Key: {}",
    "apiKey={}",
    "private_token={}",
    "--token {}",
    "setenv HF_TOKEN {}",
    "docker login -u me -p {} registry",
    "Incorrect API key provided: {}.",
    "fs.s3a.secret.key={}",
    "me:{}@db.example:5432",
    "<accessToken>{}</accessToken>",
    "cookies: {{'session': '{}'}}",
    "\tSECRET_KEY={}\n",
)
KEYS = st.integers(0).map(lambda seed: random.Random(seed).randbytes(600 + seed % 1400))
NOISE = st.sampled_from(
    (
        "",
        "[rank3]: ",
        "2026-01-02 03:04:05,678 - INFO - ",
        "\x1b[32mINFO\x1b[0m ",
        "step 100 loss 2.31 ",
        "(pid=123) ",
        '{"level": "info", "msg": "',
        "ERROR>>> ",
    )
)
EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(
    ISSUED, NOISE, st.sampled_from((" ", "", ",", '"', "'", ")", "\n", "\r\n", ";", "<", " trailing words"))
)
@EXAMPLES
def test_no_issued_token_survives_anywhere_in_a_line(secret: str, before: str, after: str) -> None:
    assert secret not in mask(f"{before}{secret}{after}")


@pytest.mark.parametrize("context", NAMED_CONTEXTS)
@given(secret=PASSWORD)
@settings(max_examples=25, deadline=None)
def test_no_password_survives_its_name(context: str, secret: str) -> None:
    assert secret not in mask(context.format(secret))


@pytest.mark.parametrize("context", TOKEN_CONTEXTS)
@given(secret=opaque(32), before=NOISE)
@settings(max_examples=25, deadline=None)
def test_no_token_survives_its_name(context: str, secret: str, before: str) -> None:
    masked = mask(before + context.format(secret))
    assert secret not in masked
    assert secret[:12] not in masked


@given(KEYS, st.integers(0, 1), st.integers(0, 40), NOISE)
@settings(max_examples=60, deadline=None)
def test_no_line_of_a_private_key_survives_even_where_the_block_is_cut(
    key: bytes, cut_front: int, cut_back: int, before: str
) -> None:
    encoded = base64.b64encode(key).decode()
    body = [encoded[at : at + 64] for at in range(0, len(encoded), 64)]
    lines = ["-----BEGIN RSA PRIVATE KEY-----", *body, "-----END RSA PRIVATE KEY-----"]
    kept = lines[cut_front : len(lines) - min(cut_back, len(lines) - 4)]
    masked = mask("\n".join(before + line for line in kept) + "\n" + before + "step 10 loss 2.5\n")
    assert not [line for line in body if len(line) == 64 and line in masked]
    assert "step 10 loss 2.5" in masked


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_key_block_cut_between_two_chunks_stays_masked(data: st.DataObject) -> None:
    encoded = base64.b64encode(data.draw(KEYS)).decode()
    body = [encoded[at : at + 64] for at in range(0, len(encoded), 64)]
    lines = ["-----BEGIN OPENSSH PRIVATE KEY-----", *body, "-----END OPENSSH PRIVATE KEY-----", "step 10"]
    at = data.draw(st.integers(1, len(lines) - 1))
    masker = Masker()
    chunks = ["\n".join(lines[:at]) + "\n", "\n".join(lines[at:]) + "\n"]
    masked = "".join(masker.mask(chunk, stream="rank0") for chunk in chunks)
    assert not [line for line in body if line in masked]
    assert masked.endswith("step 10\n")


def test_the_only_line_of_a_key_in_a_chunk_is_masked_by_what_the_chunk_before_left_open() -> None:
    masker = Masker()
    masker.mask("-----BEGIN PRIVATE KEY-----\n", stream="rank0")
    assert masker.mask("0123456789abcdefABCD\nstep 10\n", stream="rank0") == f"{MASK}\nstep 10\n"


def test_the_last_line_of_a_key_is_masked_by_the_end_behind_it() -> None:
    assert mask("step 9\n0123456789abcdefABCD\n-----END PRIVATE KEY-----\n") == f"step 9\n{MASK}\n{MASK}\n"


def test_an_open_block_of_one_stream_does_not_mask_another() -> None:
    masker = Masker()
    masker.mask("-----BEGIN PRIVATE KEY-----\n", stream="rank0")
    assert masker.mask("0123456789abcdefABCD\n", stream="rank1") == "0123456789abcdefABCD\n"


def test_a_service_account_file_in_one_json_line_loses_its_key_only() -> None:
    text = (
        r'{"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\nabc=\n'
        r'-----END PRIVATE KEY-----\n", "project_id": "my-project"}'
    )
    masked = mask(text)
    assert "MIIEvQIBADANBg" not in masked
    assert '"project_id": "my-project"' in masked


def test_an_opening_line_without_a_key_does_not_swallow_the_log() -> None:
    text = "-----BEGIN PRIVATE KEY-----\nstep 1 loss 2.5\nstep 2 loss 2.4\n"
    assert mask(text) == f"{MASK}\nstep 1 loss 2.5\nstep 2 loss 2.4\n"


def test_yaml_block_values_are_masked_line_by_line() -> None:
    masked = mask("a: 1\npassword: |\n  first secret\n  second secret\nlr: 0.1\n")
    assert "secret\n" not in masked
    assert masked.count("\n") == 5
    assert masked.endswith("lr: 0.1\n")


READABLE = (
    "step 4600/5155 loss=2.3145 lr=3.0e-04 tokens/s=123456 grad_norm=0.53",
    "iteration 10/ 100 | consumed tokens: 2048 | elapsed time per iteration (ms): 123.4",
    "num_tokens=99 max_token_length: 2048 tokens_per_second: 1.2e5 token_type_ids=None",
    "pad_token: '<pad>' eos_token_id=2 bos_token='<s>' mask_token=[MASK]",
    'Missing key(s) in state_dict: "model.layers.0.self_attn.q_proj.weight"',
    "KeyError: 'input_ids'",
    "HEAD is now at 0123456789abcdef0123456789abcdef01234567 fix lr schedule",
    "commit 0123456789abcdef0123456789abcdef01234567",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  model.safetensors",
    "GPU 0: NVIDIA H100 (UUID: GPU-0a1b2c3d-1234-5678-9abc-def012345678)",
    "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.",
    "Saving model checkpoint to /data/runs/exp-42/checkpoint-4600/pytorch_model.bin",
    "[rank3]:[E ProcessGroupNCCL.cpp:616] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12)",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.15 GiB",
    "wandb: View run at https://wandb.ai/team/project/runs/a1b2c3d4",
    "Connecting to http://10.0.0.3:8080/health and tcp://node-3:29500",
    "git+ssh://git@github.com/org/repo.git",
    "TOKENIZERS_PARALLELISM=true NCCL_DEBUG=INFO PWD=/home/me OMP_NUM_THREADS=8",
    "hf_hub_download(repo_id='org/model') in sk-learn-contrib task-1234567890abcdefghij",
    "SyntaxError: unexpected token: identifier",
    "Permission denied (publickey,password).",
    "Bearer authentication failed; Basic training configuration loaded",
    "primary_key=id sort_key=len cache_key=3 attention key: query key value",
    "HF_TOKEN:  <set to the key 'token' in secret 'hub'>  Optional: false",
    "password=None token=null api_key: None secret: ***",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=123.0",
    "  0%|          | 0/1000 [00:00<?, ?it/s]\r 1%|1         | 10/1000 [00:01<02:00,  8.2it/s]",
    "weights 0.123 -1.234 nan inf 1e-8 tensor([[1., 2.]]) <class 'torch.Tensor'>",
    "@torch.no_grad() def f(x): return x @ y",
)


@pytest.mark.parametrize("line", READABLE)
def test_an_ordinary_line_of_a_training_log_stays_as_it_is(line: str) -> None:
    assert mask(line) == line


MESSY = st.lists(
    st.one_of(
        st.sampled_from(NAMED_CONTEXTS + TOKEN_CONTEXTS).flatmap(
            lambda context: PASSWORD.map(lambda secret: context.format(secret))
        ),
        ISSUED,
        st.sampled_from(READABLE),
        st.text(max_size=60),
        st.text("ab:/@=\"'\\ -[]masked\n", max_size=60),
        st.just("me@example.com"),
        st.just("-----BEGIN PRIVATE KEY-----"),
        st.just("-----END PRIVATE KEY-----"),
    ),
    max_size=6,
)


@given(MESSY, st.sampled_from(("\n", " ", ", ", "\r\n")), st.booleans())
@settings(max_examples=400, deadline=None)
def test_masking_twice_is_masking_once_and_lines_stay_lines(
    parts: list[str], joint: str, everything: bool
) -> None:
    text = joint.join(parts)
    once = mask(text, hosts=everything, addresses=everything)
    assert mask(once, hosts=everything, addresses=everything) == once
    assert once.count("\n") == text.count("\n")


def test_e_mail_addresses_go() -> None:
    assert mask("mail someone.else+x@mail.example.com now") == f"mail {MASK} now"


def test_hosts_and_addresses_stay_unless_asked() -> None:
    text = "node gpu-7 lost, 10.0.0.7:29500 refused, fe80::1ff:fe23:4567:890a"
    assert mask(text) == text


def test_equal_hosts_stay_equal_and_an_answer_can_be_turned_back() -> None:
    masker = Masker(hosts=True, addresses=True, known_hosts=["gpu-7", "gpu-8"])
    first = masker.mask("gpu-7 lost peer gpu-8 (10.0.0.8:29500); gpu-7 aborts\n")
    second = masker.mask("connect to 10.0.0.8 from gpu-8 via fe80::1ff:fe23:4567:890a\n")
    for real in ("gpu-7", "gpu-8", "10.0.0.8", "fe80"):
        assert real not in first + second
    seven = first.split()[0]
    assert first.count(seven) == 2
    assert masker.unmask(f"drain {seven} now") == "drain gpu-7 now"
    assert masker.unmask(second) == "connect to 10.0.0.8 from gpu-8 via fe80::1ff:fe23:4567:890a\n"


def test_a_host_that_the_scheduler_did_not_name_is_hidden_by_its_context_and_everywhere() -> None:
    masked = mask(
        "host=worker-12.cluster.local up\nlost worker-12.cluster.local\nip-10-1-2-3 down\n", hosts=True
    )
    assert "worker-12" not in masked
    assert "ip-10-1-2-3" not in masked


def test_times_devices_and_code_are_no_addresses() -> None:
    text = "12:34:56 0000:3b:00.0 std::vector<int> aa:bb:cc:dd:ee:ff 127.0.0.1 v2.1.0 c10::Error 999.1.1.1"
    assert mask(text, addresses=True) == text


def test_a_pseudonym_that_was_never_given_is_not_turned_into_a_host() -> None:
    masker = Masker(hosts=True, known_hosts=["gpu-7"])
    assert masker.unmask("masked-host-99 failed") == "masked-host-99 failed"


BAIT = {
    "one long word": "a" * 400_000,
    "one long number": "1" * 400_000,
    "open quotes": 'password="' * 40_000,
    "mixed quotes": "password=\"x secret='" * 20_000,
    "backslashes": "\\" * 400_000,
    "escaped quotes": 'token=\\"' * 50_000,
    "mail": "a@" * 200_000,
    "dots": "a." * 200_000,
    "mail without end": "a" * 200_000 + "@" + "b." * 100_000,
    "schemes": "a://b:" * 60_000,
    "key names": "secret_key" * 40_000,
    "begin without end": "-----BEGIN PRIVATE KEY-----\n" * 14_000,
    "begin in one line": "-----BEGIN PRIVATE KEY-----" * 14_000,
    "almost keys": ("A" * 64 + "!\n") * 6_000,
    "jwt": "eyJ" * 130_000,
    "jwt dots": "eyJaaaaaaaa" + "." * 400_000,
    "dashes": "-" * 400_000,
    "colons": ":" * 400_000,
    "spaces": "token" + " " * 400_000,
    "bearers": "bearer " * 60_000,
    "sk": "sk-" * 130_000,
    "capitals": "A" * 400_000 + "_KEY=",
    "escapes": "password\x1b[0m" * 30_000,
    "yaml": "password: |\n " * 30_000,
    "login": "login a " * 50_000,
    "curl": "curl -u " * 50_000,
    "wandb": "wandb login " * 33_000,
    "octets": "1.1.1.1." * 50_000,
    "groups": "ab:" * 130_000,
    "authorization": "authorization=" * 28_000,
}


@pytest.mark.parametrize("name", BAIT)
def test_bait_for_backtracking_takes_linear_time(name: str) -> None:
    started = time.perf_counter()
    mask(BAIT[name], hosts=True, addresses=True)
    # Quadratic time over 400 kB would be minutes; the margin is for busy machines.
    assert time.perf_counter() - started < 15
