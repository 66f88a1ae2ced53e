"""A job of two workers as a process of its own, which can be killed: `bulk_parent.py INPUT OUT`."""

import sys
from contextlib import closing
from pathlib import Path

from bulk_stand_in import StandIn

from lvlm_guard.bulk.answering import answer_units
from lvlm_guard.bulk.ledger import AnswerLedger
from lvlm_guard.bulk.processes import ProcessPool
from lvlm_guard.bulk.units import BulkUnit, LineReader

if __name__ == "__main__":
    with (
        AnswerLedger(Path(sys.argv[2]), {"format": 1}) as ledger,
        closing(ProcessPool[BulkUnit](StandIn(0.01), 2)) as pool,
    ):
        answer_units(pool, LineReader(Path(sys.argv[1])), ledger)
