"""What a person reads in the UI's catalogue and forms: all is found under one name, and each field is explained."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from trainguard import blocks
from trainguard.flows.guard import guard
from trainguard.flows.patrol import patrol

BLOCKS = [getattr(blocks, name) for name in blocks.__all__]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_search_for_trainguard_finds_each_block_and_says_what_it_is(block: Any) -> None:
    assert block.get_block_type_name().startswith("trainguard ")
    assert block.get_description() and block._logo_url


@pytest.mark.parametrize("block", BLOCKS)
def test_each_field_of_a_block_is_explained(block: Any) -> None:
    assert [name for name, field in block.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("flow", [guard, patrol])
def test_each_parameter_of_a_flow_that_people_start_is_explained(flow: Any) -> None:
    schema = parameter_schema(flow.fn).model_dump()
    assert [name for name, field in schema["properties"].items() if not field.get("description")] == []
