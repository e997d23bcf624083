"""What is read from training logs.

Tested: the formats of the frameworks, as they print them; look-alikes that are no progress; epochs, restarts,
ranks and forgeries; losses that are no numbers; checkpoints, pauses, links; any way of cutting the text.
"""

from __future__ import annotations

import itertools
import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainguard.core.errors import ConfigError
from trainguard.core.job import Watching
from trainguard.core.progress import LinkKind, Pause, Reading, compile_pattern, read_progress, restarted


def read(text: str, *, pattern: str = "", at: float = 100.0) -> Reading:
    return read_progress(text, Reading(), at, pattern)


# One log a format: origin, text, how it is shown, last loss, step time.
FORMATS = {
    # Megatron-LM training_log; bigscience-workshop/Megatron-DeepSpeed issue 396 and the BLOOM chronicles
    "megatron": (
        " iteration     7000/  159576 | consumed samples:       260912 | elapsed time per iteration (ms): 18706.1 | "
        "learning rate: 6.000E-05 | global batch size:    96 | lm loss: 6.444662E+00 | loss scale: 2048.0 | grad norm: 98258.265 | "
        "number of skipped iterations:   0 | number of nan iterations:   0 |\n"
        " validation loss at iteration 7000 | lm loss value: 7.174200E+00 | lm loss PPL: 1.305315E+03 |\n"
        " iteration     7010/  159576 | consumed samples:       261872 | elapsed time per iteration (ms): 19904.0 | "
        "learning rate: 6.000E-05 | global batch size:    96 | lm loss: 1.142026E+01 | loss scale: 2048.0 | grad norm: 219645.978 |\n",
        "~7010/159576", 11.42026, 19.904,
    ),
    # deepspeedai/DeepSpeed issue 3742: engine and timer lines
    "deepspeed": (
        "[2023-07-25 21:03:21,037] [INFO] [logging.py:96:log_dist] [Rank 0] step=35, skipped=0, lr=[2.1731931451279077e-06], mom=[[0.9, 0.95]]\n"
        "[2023-07-25 21:03:21,037] [INFO] [logging.py:96:log_dist] [Rank 0] rank=0 time (ms) | forward: 652.41 | backward: 2164.52 | step: 1172.13\n"
        "[2023-07-25 21:03:25,037] [INFO] [logging.py:96:log_dist] [Rank 0] step=36, skipped=0, lr=[2.1731931451279077e-06], mom=[[0.9, 0.95]]\n",
        "~36/unknown", None, None,
    ),
    # DeepSpeed timer.py with micro steps
    "deepspeed-timer": (
        "[INFO] [timer.py:199:stop] epoch=1/micro_step=926/global_step=1880, RunningAvgSamplesPerSec=6.60, MemAllocated=7.79GB\n"
        "[INFO] [timer.py:199:stop] epoch=1/micro_step=936/global_step=1890, RunningAvgSamplesPerSec=6.60, MemAllocated=7.79GB\n",
        "~1890/unknown", None, None,
    ),
    # transformers Trainer on a pipe: bar and dicts
    "huggingface": (
        "\r  0%|          | 0/5155 [00:00<?, ?it/s]\r 89%|████████▉ | 4599/5155 [12:52:49<76:09:46, 37.71s/it]"
        "\r 89%|████████▉ | 4600/5155 [12:52:59<76:09:46, 37.71s/it]\r                                             "
        "\r{'loss': 3.6362, 'grad_norm': 0.3827981948852539, 'learning_rate': 0.001, 'epoch': 0.06, 'num_input_tokens_seen': 489684992}\n"
        "\r 89%|████████▉ | 4600/5155 [12:53:00<76:09:46, 37.71s/it]\n",
        "~4600/5155", 3.6362, 37.71,
    ),
    # transformers 5 prints the numbers of its dicts as strings
    "huggingface-5": (
        " 10%|█         | 10/100 [00:10<01:30,  2.00it/s]\n{'loss': '2.31', 'grad_norm': '1.1', 'epoch': '0.5'}\n"
        " 11%|█         | 11/100 [00:11<01:30,  2.00it/s]\n",
        "~11/100", 2.31, 0.5,
    ),
    # Lightning-AI/pytorch-lightning issue 14094: the epoch's bar and that of the validation; epochs count from 0
    "lightning": (
        "Sanity Checking DataLoader 0: 100%|██████████| 2/2 [00:00<00:00, 37.48it/s]\n"
        "Epoch 0: 100%|██████████| 266/266 [00:33<00:03, 27.70it/s, v_num=77, train_loss_step=0.223]\n"
        "Validation DataLoader 0:  50%|█████     | 78/157 [00:02<00:02, 38.79it/s]\n"
        "Epoch 1:  45%|████▌     | 120/266 [00:33<00:03, 25.00it/s, loss=0.223, v_num=77, train_loss_step=0.223]\n",
        "~386/unknown", 0.223, 0.04,
    ),
    # aws-samples/sagemaker-distributed-training-workshop issue 6: Lightning without a bar, behind MPI's prefix
    "lightning-dumb": (
        "[1,mpirank:0,algo-1]<stdout>:\rEpoch 0:  50% 1/2 [00:00<00:00,  6.54it/s, loss=2.29, v_num=0]\n"
        "[1,mpirank:0,algo-1]<stdout>:\rValidation DataLoader 0: 100% 1/1 [00:00<00:00, 1113.73it/s]\x1b[A\n"
        "[1,mpirank:0,algo-1]<stdout>:\rEpoch 0: 100% 2/2 [00:00<00:00, 12.50it/s, loss=2.19, v_num=0]\n",
        "~2/unknown", 2.19, 0.08,
    ),
    # keras-team/keras pull request 8169: Keras 2
    "keras2": (
        "Epoch 1/12\n469/469 [==============================] - 5s 87us/step - loss: 0.3437 - acc: 0.8957 - val_loss: 0.0756\n"
        "Epoch 2/12\n\r  1/469 [..............................] - ETA: 3s - loss: 0.3952 - acc: 0.9743"
        "\r120/469 [======>.......................] - ETA: 3s - loss: 0.0952 - acc: 0.9743\n",
        "~589/5628", 0.0952, 8.7e-05,
    ),
    # keras/src/utils/progbar.py: Keras 3
    "keras3": (
        "Epoch 1/2\n\x1b[1m  1/469\x1b[0m \x1b[37m━━━━━━━━━━━━━━━━━━━━\x1b[0m \x1b[1m1:02\x1b[0m 133ms/step - loss: 2.4\n"
        "\x1b[1m120/469\x1b[0m \x1b[32m━━━━━\x1b[0m\x1b[37m━━━━━━━━━━━━━━━\x1b[0m \x1b[1m12s\x1b[0m 34ms/step - accuracy: 0.9 - loss: 0.3\n",
        "~120/938", 0.3, 0.034,
    ),
    # AI-Hypercomputer/maxtext pull request 4847
    "maxtext": (
        "I0811 21:54:55.531340 138304841739136 metric_logger.py:226] completed step: 1, seconds: 0.631, TFLOP/s/device: 5688.282, "
        "Tokens/s/device: 311629.521, total_weights: 1572864, loss: 12.979, lm_loss: 12.979, perplexity: 433358.281\n"
        "I0811 21:55:06.119312 138304841739136 metric_logger.py:226] completed step: 2, seconds: 10.228, TFLOP/s/device: 350.869, "
        "Tokens/s/device: 19222.175, total_weights: 1572864, loss: 12.980, lm_loss: 12.980, perplexity: 433463.719\n",
        "~2/unknown", 12.98, 10.228,
    ),
    # Levanter under tqdm-loggable: both numbers are rounded, so there is no maximum
    "levanter": (
        "2026-03-30T16:24:57 - tqdm_loggable - INFO - Progress on:train 4.59kit/5.16kit rate:1.2it/s remaining:07:50 elapsed:1:05:15 postfix:loss=2.1\n"
        "2026-03-30T16:25:07 - tqdm_loggable - INFO - Progress on:eval 12.0it/64.0it rate:9.1it/s remaining:00:05 elapsed:00:01 postfix:-\n"
        "2026-03-30T16:25:07 - tqdm_loggable - INFO - Progress on:train 4.60kit/5.16kit rate:1.25it/s remaining:07:40 elapsed:1:05:25 postfix:loss=2.0\n",
        "~4600/unknown", 2.0, 0.8,
    ),
    # karpathy/nanoGPT train.py
    "nanogpt": (
        "step 250: train loss 1.9612, val loss 2.0701\nsaving checkpoint to out-shakespeare-char\n"
        "iter 250: loss 1.9893, time 3510.52ms, mfu 6.30%\niter 260: loss 1.9756, time 120.50ms, mfu 6.29%\n",
        "~260/unknown", 1.9756, 0.1205,
    ),
    # KellerJordan/modded-nanogpt train_gpt.py
    "modded-nanogpt": (
        "step:125/1750 val_loss:4.5012 train_time:18000ms step_avg:144.00ms\nstep:126/1750 train_time:18144ms step_avg:144.00ms\n",
        "~126/1750", None, 0.144,
    ),
    # pytorch/torchtitan pull request 2389: every rank may print
    "torchtitan": (
        "[rank0]:[titan] 2026-02-24 19:46:17,508 - root - INFO - step:  4  loss:  7.62585  grad_norm: 26.6250  memory: 66.91GiB(37.51%)  tps: 10,050\n"
        "[rank1]:[titan] 2026-02-24 19:46:17,508 - root - INFO - step:  4  loss:  7.62585  grad_norm: 26.6250  memory: 66.91GiB(37.51%)  tps: 10,050\n"
        "[rank0]:[titan] 2026-02-24 19:46:19,145 - root - INFO - step:  5  loss:  7.07623  grad_norm: 46.5000  memory: 66.91GiB(37.51%)  tps: 10,007\n",
        "~5/unknown", 7.07623, None,
    ),
    # facebookresearch/metaseq pull request 507: JSON with quoted numbers behind a prefix
    "fairseq-json": (
        'slurm_procid 0 : 2022-11-11 14:05:27 | INFO | train_inner | {"epoch": 1, "loss": "15.878", "ppl": "60214.8", "ups": "0", "num_updates": "1", "lr": "2.8e-07", "gnorm": "16.981"}\n'
        'slurm_procid 0 : 2022-11-11 14:05:29 | INFO | train_inner | {"epoch": 1, "loss": "15.864", "ppl": "59660.5", "ups": "0.5", "num_updates": "2", "lr": "5.6e-07", "gnorm": "16.783"}\n'
        '2022-11-11 14:05:30 | INFO | valid | {"epoch": 1, "valid_loss": "14.1", "valid_num_updates": "99"}\n',
        "~2/unknown", 15.864, 2.0,
    ),
    # facebookresearch/fairseq issue 940: num_updates is the step, not the batch of the epoch
    "fairseq-text": (
        "| epoch 001:    450 / 1891 loss=11.521, nll_loss=10.881, wps=52922, ups=0.5, num_updates=445, lr=8.9e-05, gnorm=1.543\n"
        "| epoch 001 | valid on 'valid' subset | valid_loss 8.11425 | valid_ppl 118.06 | num_updates 600\n"
        "| epoch 001:    500 / 1891 loss=11.346, nll_loss=10.678, wps=53351, ups=0.5, num_updates=455, lr=9.9e-05, gnorm=1.507\n",
        "~455/unknown", 11.346, 2.0,
    ),
    # facebookresearch/fairseq issue 301: batches of an epoch, counted from 1
    "fairseq-old": (
        "| epoch 010  2000 / 8223 loss=1.27 (1.50), wps=962, lr=0.001, gnorm=2.1427\n"
        "| epoch 010 | valid on 'valid' subset  1000 / 1311 loss=1.60\n"
        "| epoch 011  1000 / 8223 loss=1.89 (1.38), wps=963, lr=0.001, gnorm=2.0860\n",
        "~83230/unknown", 1.89, None,
    ),
    # pytorch/examples imagenet/main.py: epochs from 0
    "imagenet": (
        "Epoch: [0][ 100/5005]\tTime  0.345 ( 9.345)\tData  0.156 ( 1.156)\tLoss 6.7914e+00 (6.8e+00)\tAcc@1  12.50 ( 12.50)\n"
        "Epoch: [1][  10/5005]\tTime  0.345 ( 9.345)\tData  0.156 ( 1.156)\tLoss 1.7914e+00 (1.8e+00)\tAcc@1  12.50 ( 12.50)\n"
        "Epoch: [1][  20/5005]\tTime  0.345 ( 9.345)\tData  0.156 ( 1.156)\tLoss 1.6914e+00 (1.8e+00)\tAcc@1  12.50 ( 12.50)\n",
        "~5025/unknown", 1.6914, None,
    ),
    # mlfoundations/open_clip train.py
    "open-clip": (
        "2024-12-08,22:10:14 | INFO | Train Epoch: 1 [41/14656] [   41984/15007744 (0%)] Loss: 3.6008 (3.656) gpu_memory: 7.0049\n"
        "2024-12-08,22:10:24 | INFO | Train Epoch: 1 [51/14656] [   51984/15007744 (0%)] Loss: 3.5008 (3.656) gpu_memory: 7.0049\n",
        "~51/unknown", 3.5008, None,
    ),
    # the PyTorch tutorials
    "tutorial": (
        "Epoch [1/10], Step [400/469], Loss: 0.5912\nEpoch [2/10], Step [100/469], Loss: 0.2912\nEpoch [2/10], Step [200/469], Loss: 0.1912\n",
        "~669/4690", 0.1912, None,
    ),
    # MLPerf's DLLogger
    "dllogger": (
        "DLL 2021-05-19 10:22:28.249054 - epoch    1 | iter    1/272 | loss  341.00 | utts/s  1119 | took  0.92 s | lrate 1.00e-05\n"
        "DLL 2021-05-19 10:22:29.249054 - epoch    1 | iter    2/272 | loss  340.00 | utts/s  1119 | took  0.91 s | lrate 1.00e-05\n",
        "~2/272", 340.0, 0.91,
    ),
    # paxml trainer.py
    "paxml": (
        "I1115 16:00:39.451247 140641718562816 trainer.py:501] Training: step 198\nI1115 16:00:40.451247 140641718562816 trainer.py:501] Training: step 199\n",
        "~199/unknown", None, None,
    ),
    # detectron2 events.py
    "detectron2": (
        "[07/04 10:00:00 d2.utils.events]:  eta: 0:01:00  iter: 19  total_loss: 1.252  loss_cls: 0.5  time: 0.4  lr: 0.001\n"
        "[07/04 10:00:10 d2.utils.events]:  eta: 0:00:50  iter: 39  total_loss: 1.152  loss_cls: 0.5  time: 0.4  lr: 0.001\n",
        "~39/unknown", 1.152, None,
    ),
    "json-lines": ('{"step": 10, "loss": 2.5, "lr": 0.1}\n{"step": 20, "loss": 2.25, "lr": 0.1}\n', "~20/unknown", 2.25, None),
    "plain": ("step 4600/5155\n", "~4600/5155", None, None),
    "colon": ("Step: 4600\n", "~4600/unknown", None, None),
    "assignment": ("global_step=4600\n", "~4600/unknown", None, None),
    "of": ("Step 100 of 1000, loss = 2.5\n", "~100/1000", 2.5, None),
    "demo": ("step 120/600 loss 1.2345 grad_norm 0.8 lr 0.1 time 40.1ms\n", "~120/600", 1.2345, 0.0401),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_tells_step_maximum_loss_and_step_time(name: str) -> None:
    text, shown, loss, seconds = FORMATS[name]
    progress = read(text).progress
    assert progress is not None
    assert str(progress) == shown
    assert progress.loss == (None if loss is None else pytest.approx(loss))
    assert progress.step_seconds == (None if seconds is None else pytest.approx(seconds))


LOOK_ALIKES = (
    "Downloading data: 37%|███▋      | 1.35G/3.60G [00:10<00:20, 105MB/s]",  # huggingface_hub
    "Generating train split: 100%|██████████| 52002/52002 [00:02<00:00, 20000.1 examples/s]",  # datasets
    "Map (num_proc=8):  12%|█▏        | 1000/8192 [00:01<00:08, 800.00 examples/s]",
    "Running tokenizer on dataset: 100%|██████████| 52/52 [00:02<00:00, 20.1it/s]",
    "Loading checkpoint shards: 100%|██████████| 2/2 [00:05<00:00,  2.5s/it]",
    "Saving the dataset (21/21 shards): 100%|██████████| 2100/2100 [00:05<00:00, 411.1it/s]",
    "Grouping texts in chunks of 8192: 100%|██████████| 12/12 [00:05<00:00, 2.1it/s]",
    "Validation DataLoader 0:  46%|████▌     | 73/157 [00:02<00:02, 37.48it/s]",
    "Evaluating: 100%|██████████| 63/63 [00:05<00:00, 12.1it/s]",
    "Step 3/10 : RUN pip install -r requirements.txt",  # docker build
    "[INFO] Step 1/3: preparing data",
    "Total optimization steps = 5155",
    "  Total train batch size = 64, total steps: 5155, loss type: ce",
    "max_steps: 5155  save_steps=500  logging_steps: 10 warmup steps: 100 lr=0.1",
    '    "steps_per_print": 2.000000e+03,',
    '    "gradient_accumulation_steps": 1,',
    "Resuming from step 4000",
    "Loading checkpoint at global_step=4000",
    "[deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768",
    "Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 128.0",
    "slurmstepd: error: *** STEP 3347856.0 ON gpub001 CANCELLED AT 2024-04-02T19:13:08 DUE TO TIME LIMIT ***",
    "slurmstepd: error: *** STEP 3347856 ON gpub001 CANCELLED AT 2024-04-02T19:13:08 DUE TO TIME LIMIT ***",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=128435.1.",
    "wandb: WARNING (User provided step: 205224 is less than current step: 205528. Dropping entry: {'train/loss': 3.6}",
    ':::MLLOG {"namespace": "", "time_ms": 1621392252531, "key": "epoch_stop", "metadata": {"lineno": 939, "step": 35}}',
    "valid on 'valid' subset: step 10/50 loss 2.5",
    "[eval] step: 10 loss: 2.5",
    "rank=0 time (ms) | forward: 652.41 | step: 1172.13",
    "Node[0] Epoch[34] Batch [220-240]\tSpeed: 20774.28 samples/sec\taccuracy=nan",
    "Best epoch 3/10 loss 0.5",
)


@pytest.mark.parametrize("line", LOOK_ALIKES)
def test_look_alikes_are_no_progress(line: str) -> None:
    assert read(line + "\n").progress is None


def test_a_rounded_total_is_never_shown_as_the_maximum() -> None:
    text = "train:  89%|████▉| 4.60k/5.16k [12:52<01:09, 37.71s/it]\ntrain:  89%|████▉| 4.61k/5.16k [12:52<01:09, 37.71s/it]\n"
    assert str(read(text).progress) == "~4610/unknown"


def test_a_bar_at_nought_is_no_first_step() -> None:
    """A model that still compiles shows 0/5000 for a long time."""
    reading = read("  0%|          | 0/5000 [00:00<?, ?it/s]\n")
    assert reading.first_step_at is None
    assert read_progress("  0%|   | 1/5000 [00:40<1:00, 40.0s/it]\n", reading, 140.0).first_step_at == 140.0


def test_the_bar_of_an_evaluation_does_not_replace_that_of_the_training() -> None:
    training = "".join(f" 1%| | {n}/5000 [00:01<1:00,  1.2s/it]\n" for n in range(10, 20))
    training += "{'loss': 2.1, 'learning_rate': 0.1, 'epoch': 0.1}\n"
    evaluation = "".join(f" 1%| | {n}/9999 [00:01<1:00,  9.2it/s]\n" for n in range(600))
    assert str(read(training + evaluation).progress) == "~19/5000"
    assert str(read(training + evaluation + " 1%| | 20/5000 [00:01<1:00,  1.2s/it]\n").progress) == "~20/5000"


def test_an_evaluation_after_the_last_step_does_not_replace_it() -> None:
    training = "".join(f" 1%| | {n}/300 [00:01<1:00,  1.2s/it, loss=2.5]\n" for n in range(290, 301))
    evaluation = "".join(f" 1%| | {n}/9999 [00:01<1:00,  9.2it/s]\n" for n in range(9))
    assert str(read(training + evaluation).progress) == "~300/300"


def test_an_evaluation_within_an_epoch_is_not_its_counter() -> None:
    # keras Model.evaluate from a callback
    text = "Epoch 1/2\n120/469 [==>...] - ETA: 3s - loss: 0.1\n 30/79 [===>..] - ETA: 0s - loss: 0.5\n79/79 [====] - 0s 3ms/step - loss: 0.5\n"
    assert str(read(text).progress) == "~120/938"


def test_a_tokenising_bar_without_a_label_gives_way_to_the_training() -> None:
    text = "".join(f"  1%| | {n}/52002 [00:00<00:01, 900.0it/s]\n" for n in (0, 20000, 52002))
    text += "".join(f"  1%| | {n}/300 [00:01<1:00,  1.2s/it, loss=2.5]\n" for n in range(5))
    assert str(read(text).progress) == "~4/300"


def test_a_counter_that_starts_again_with_every_epoch_is_added_up() -> None:
    first = "Epoch 1/3\nstep 100/200 loss 2\nstep 190/200 loss 2\n"
    assert str(read(first).progress) == "~190/unknown", "one epoch can't tell whether the counter is global"
    assert str(read(first + "Epoch 2/3\nstep 10/200 loss 2\nstep 20/200 loss 2\n").progress) == "~220/600"


def test_a_global_counter_beside_epochs_is_left_alone() -> None:
    text = "Epoch 1/3\nstep 190/600 loss 2\nEpoch 2/3\nstep 210/600 loss 2\nstep 220/600 loss 2\n"
    assert str(read(text).progress) == "~220/600"


def test_bars_that_start_again_without_naming_an_epoch_are_added_up() -> None:
    text = "".join(f"{n}%|#| {n}/100 [00:01<00:01, 9.0it/s]\n" for lap in range(2) for n in (1, 34, 67, 100))
    assert read(text).progress is not None
    assert read(text).progress.step == 200  # type: ignore[union-attr]


def test_a_step_that_goes_back_is_a_new_attempt_and_no_progress() -> None:
    before = read("".join(f"step {n}/600 loss 2\n" for n in range(100, 121)))
    after = read_progress("step 101/600 loss 2\nstep 102/600 loss 2\n", before, 200.0)
    assert (str(after.progress), after.best_step, after.attempts) == ("~102/600", 120, 2)
    assert after.first_step_at == 200.0


def test_ranks_that_lag_behind_are_no_restart() -> None:
    lines = "".join(f"[rank0] step {n} loss 2\n[rank1] step {n - 1} loss 2\n" for n in range(5, 60))
    reading = read(lines)
    assert (reading.best_step, reading.attempts) == (59, 1)


@pytest.mark.parametrize(
    "forged", ["1000000000000000000", "99999999999", "5000", "599", "999999999999999999999999"]
)
def test_one_forged_line_poisons_neither_step_nor_best_step(forged: str) -> None:
    before = "".join(f"step {n}/600 loss 2\n" for n in range(100, 121))
    reading = read(before + f"step {forged} loss 0.001\n" + "step 121/600 loss 2\nstep 122/600 loss 2\n")
    assert (str(reading.progress), reading.best_step, reading.attempts) == ("~122/600", 122, 1)


def test_a_forged_first_line_is_outlived() -> None:
    reading = read("step 900000000 loss 2\n" + "".join(f"step {n}/600 loss 2\n" for n in range(1, 9)))
    assert (str(reading.progress), reading.best_step) == ("~8/600", 8)


def test_a_jump_is_believed_once_it_goes_on() -> None:
    """A part of the log was skipped, or the guard came back after a night."""
    reading = read("".join(f"step {n}/90000 loss 2\n" for n in (1, 2, 3, 50_000)))
    assert reading.best_step == 3
    assert read_progress("step 50001/90000 loss 2\n", reading, 200.0).best_step == 50_001


def test_losses_that_are_no_numbers_stay_what_they_are() -> None:
    reading = read("step 1 loss 2.5\nstep 2 loss nan\nstep 3 loss -inf\n")
    assert reading.progress is not None
    assert reading.progress.loss == -math.inf
    assert [step for step, loss in reading.loss_history if not math.isfinite(loss)] == [2, 3]
    assert reading.nonfinite_losses == 2
    assert read_progress("step 4 loss 2.0\n", reading, 101.0).nonfinite_losses == 0


def test_the_same_step_said_by_eight_ranks_is_one_loss() -> None:
    assert read("step 1 loss nan\n" * 8).nonfinite_losses == 1


def test_gradient_norms_of_steps_that_the_loss_scaler_skipped_do_not_count() -> None:
    # Megatron-LM in the first steps of fp16
    line = " iteration {n}/ 1000 | lm loss: 9.1E+00 | loss scale: 2048.0 | grad norm: nan | number of skipped iterations:   {s} |\n"
    assert read("".join(line.format(n=n, s=1) for n in range(1, 9))).nonfinite_grads == 0
    assert read("".join(line.format(n=n, s=0) for n in range(1, 9))).nonfinite_grads == 8


def test_a_zero_loss_with_nan_gradients_is_seen() -> None:
    # transformers with logging_nan_inf_filter
    text = "".join(
        f" 1%| | {n}/900 [00:01<1:00,  1.2s/it]\n{{'loss': 0.0, 'grad_norm': nan, 'epoch': 0.5}}\n"
        for n in range(5)
    )
    assert read(text).nonfinite_grads == 5


def test_the_loss_history_is_bounded_and_spans_the_training() -> None:
    history = read("".join(f"step {n} loss {n}.5\n" for n in range(1, 5001))).loss_history
    assert 100 <= len(history) <= 200
    assert history[0][0] < 100
    assert history[-1][0] > 4900
    assert all(loss == step + 0.5 for step, loss in history)


CHECKPOINTS = (
    ("Saving model checkpoint to out/checkpoint-500", (500,)),  # transformers
    ("  successfully saved checkpoint from iteration     500 to /ckpt", (500,)),  # Megatron-LM
    ("saved a checkpoint at step 500", (500,)),  # MaxText
    ("Saved checkpoint to gs://bucket/run/step-500 for step 500", (500,)),  # Levanter
    ("saved checkpoint step-000500.npz at step 500", (500,)),
    ("Saving checkpoint at step 500", ()),
    ("Loading checkpoint from step 500", ()),
)


@pytest.mark.parametrize(("line", "steps"), CHECKPOINTS)
def test_checkpoints_are_noted_when_the_log_says_they_are_written(line: str, steps: tuple[int, ...]) -> None:
    assert read("step 501 loss 2\n" + line + "\n").checkpoint_steps == steps


def test_a_pause_lasts_from_its_announcement_to_the_next_step() -> None:
    reading = read("step 10 loss 2\nSaving checkpoint at step 10\n")
    assert reading.pause is Pause.CHECKPOINT
    assert read_progress("saved checkpoint at step 10\n", reading, 101.0).pause is None
    reading = read("step 10 loss 2\n***** Running Evaluation *****\n")
    assert reading.pause is Pause.EVALUATION
    assert read_progress("step 11 loss 2\n", reading, 101.0).pause is None


def test_trouble_is_told_in_our_words_until_the_next_step() -> None:
    reading = read("step 10 loss 2\nray.exceptions.OwnerDiedError: [click me](http://evil) \x1b[31m\n")
    assert reading.trouble == "the log says that the owner of an object died"
    assert read_progress("step 11 loss 2\n", reading, 101.0).trouble == ""


LINKS = (
    ("wandb: 🚀 View run at https://wandb.ai/team/proj/runs/negt2tz0", LinkKind.WANDB, "negt2tz0"),
    ("wandb: 🚀 View run \x1b[33mx\x1b[0m at: \x1b[34m\x1b[4mhttps://wandb.example.org/t/p/runs/ab-1\x1b[0m", LinkKind.WANDB, "ab-1"),
    (
        "🏃 View run useful-crow-1 at: http://127.0.0.1:5000/#/experiments/0/runs/7d2c8b1e0c0f4c0c9bd3a1d1a4f7d1a2",
        LinkKind.MLFLOW,
        "7d2c8b1e0c0f4c0c9bd3a1d1a4f7d1a2",
    ),
    ("TensorBoard 2.19.0 at http://localhost:6006/ (Press CTRL+C to quit)", LinkKind.TENSORBOARD, ""),
)  # fmt: skip


@pytest.mark.parametrize(("line", "kind", "run"), LINKS)
def test_links_of_trackers_are_found_once(line: str, kind: LinkKind, run: str) -> None:
    links = read(f"{line}\n{line}\nsome text\n{line}\n").links
    assert [(link.kind, link.run_id) for link in links] == [(kind, run)]
    assert "\x1b" not in links[0].url


@pytest.mark.parametrize(
    "line",
    [
        "wandb: View run at javascript:alert(1)/runs/x",
        "wandb: View run at https://user:secret@wandb.ai/t/p/runs/x",
        "docs at https://example.org/runs/12",
        "wandb: View project at https://wandb.ai/team/proj",
        "wandb: View run at file:///etc/passwd/runs/x",
    ],
)
def test_other_addresses_are_no_links(line: str) -> None:
    assert read(line + "\n").links == ()


def test_links_and_their_number_are_bounded() -> None:
    many = "".join(f"wandb: View run at https://wandb.ai/t/p/runs/r{n}\n" for n in range(500))
    assert len(read(many).links) == 20
    assert read(f"wandb: View run at https://wandb.ai/t/{'a' * 4000}/runs/x\n").links == ()


def test_an_owners_pattern_comes_first() -> None:
    pattern = r"done (?P<step>\d+) of (?P<total>\d+), err (?P<loss>\S+)"
    text = "step 3/9 loss 1\nstep 4/9 loss 1\ndone 17 of 40, err nan\n"
    progress = read(text, pattern=pattern).progress
    assert str(progress) == "~17/40"
    assert progress is not None
    assert math.isnan(progress.loss or 0)


BAD_PATTERNS = (
    ("(", "no regular expression"),
    (r"step \d+", "no group named step"),
    (r"(?P<step>\d+) (?P<lr>\d+)", "'lr'"),
    (r"(?P<step>(\d+)+)", "hostile"),
    (r"(?P<step>\d+)(a|aa)*x", "hostile"),
    (r"((?P<step>\d+)\s*)+$", "hostile"),
    (r"(?:x[)]*){2,}(?P<step>\d+)", "hostile"),
    (r"(?P<step>\d+)" + "x" * 600, "longer"),
)


@pytest.mark.parametrize(("pattern", "why"), BAD_PATTERNS)
def test_a_bad_pattern_is_refused_with_its_reason(pattern: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        compile_pattern(pattern)
    assert refused.value.field == "watching.progress_pattern"
    with pytest.raises(ConfigError, match=why):
        Watching(progress_pattern=pattern)


@pytest.mark.parametrize(
    "pattern", [r"it\[(?P<step>\d+)\]", r"(?:step )?(?P<step>\d+)(?:/(?P<total>\d+))?", r"[(]+(?P<step>\d+)[)*+]+", r"\(+(?P<step>\d+)\)+"]
)  # fmt: skip
def test_a_good_pattern_is_not_refused(pattern: str) -> None:
    compile_pattern(pattern)


ALL = (
    "".join(text for text, *_ in FORMATS.values())
    + "\n".join(LOOK_ALIKES)
    + "\n"
    + "".join(f"{line}\n" for line, *_ in LINKS)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(ALL)), max_size=12))
def test_how_a_text_is_cut_does_not_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(ALL)]
    reading = Reading()
    for begin, end in itertools.pairwise(edges):
        reading = read_progress(ALL[begin:end], reading, 100.0)
    assert reading.model_dump_json() == read(ALL).model_dump_json()


@settings(max_examples=100, deadline=None)
@given(
    st.text(alphabet="step iter:=/|%[]<>{}'\"0123456789.kEpochloss\r\n\x1b\x00nainf", max_size=400),
    st.integers(0, 400),
)
def test_any_text_is_read_and_stored_without_an_error(text: str, cut: int) -> None:
    reading = read_progress(text[cut:], read(text[:cut]), 101.0)
    stored = json.dumps(reading.model_dump(mode="json"), allow_nan=False)
    assert Reading.model_validate_json(stored).model_dump_json() == reading.model_dump_json()


def test_a_new_attempt_keeps_what_belongs_to_the_job() -> None:
    before = read(
        "wandb: View run at https://wandb.ai/t/p/runs/a\n"
        + "".join(f"step {n}/600 loss nan\n" for n in range(1, 50))
    )
    after = restarted(before)
    assert after.progress is None
    assert after.first_step_at is None
    assert after.nonfinite_losses == 0
    assert (after.best_step, after.attempts, len(after.links)) == (49, 2, 1)
    again = read_progress("step 20/600 loss 1\nstep 21/600 loss 1\n", after, 300.0)
    assert (str(again.progress), again.best_step, again.first_step_at) == ("~21/600", 49, 300.0)


def test_the_time_of_a_step_is_measured_where_the_log_does_not_say_it() -> None:
    reading = read("step 10/600 loss 1\n", at=100.0)
    reading = read_progress("step 15/600 loss 1\nstep 20/600 loss 1\n", reading, 120.0)
    assert reading.progress is not None
    assert reading.progress.step_seconds == pytest.approx(2.0)
    assert read_progress("step 21/600 loss 1\n", reading, 50.0).progress.step_seconds is None  # type: ignore[union-attr]


HOSTILE_LINES = {
    "digits": "1" * 1_000_000,
    "bar": "|" * 1_000_000,
    "percent": "1%|" * 300_000,
    "spaces": "step" + " " * 1_000_000 + "1",
    "epochs": "epoch 1 " * 125_000,
    "steps": "step 1/2 " * 110_000,
    "brackets": "[" * 1_000_000,
    "keras": "1/2 [" + "=" * 1_000_000,
    "links": "https://wandb.ai/runs/" * 45_000,
    "escapes": "\x1b[" + "1;" * 500_000,
    "losses": "loss" * 250_000,
    "saved": "saved " * 160_000,
}


@pytest.mark.parametrize("name", HOSTILE_LINES)
def test_a_line_of_a_megabyte_costs_little(name: str) -> None:
    """Measured against a plain line of the same length, so that a busy machine does not matter."""
    line = HOSTILE_LINES[name]
    began = time.process_time()
    read(line + "\n")
    whole = time.process_time() - began
    assert whole < 0.5
    reading = Reading()
    began = time.process_time()
    for begin in range(0, len(line), 1000):
        reading = read_progress(line[begin : begin + 1000], reading, 100.0)
    assert time.process_time() - began < 1.0
    assert len(reading.tail) <= 4_096
