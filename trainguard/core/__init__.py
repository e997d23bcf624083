"""Pure logic over frozen data: no Prefect, no clock, no I/O."""
