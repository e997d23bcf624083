#!/bin/sh
# Clears what a broken run left in the scratch folder, so that the next attempt starts clean.
set -eu
scratch="${SCRATCH_DIR:-}"
echo "exit code ${TRAINGUARD_EXIT_CODE} of ${TRAINGUARD_JOB}, attempt ${TRAINGUARD_ATTEMPT}"
if [ -n "$scratch" ] && [ -d "$scratch/lock" ]; then
    rmdir "$scratch/lock"
fi
