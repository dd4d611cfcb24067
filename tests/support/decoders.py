"""The decoder of every JSON record, by the name of its golden file."""

from schemas.admission import AdmissionFrontier
from schemas.dead_letters import DeadLetter
from schemas.evals import EvalResult
from schemas.federation import Site, SiteUpdate, decode_rounds_entry
from schemas.feedback import Feedback
from schemas.ledger import decode_entry
from schemas.prompts import Prompt
from schemas.weights import WeightVersion
from schemas.workers import WorkerEntry

DECODERS = {
    "prompt": Prompt.decode,
    "weights": WeightVersion.decode,
    "admission": AdmissionFrontier.decode,
    "ledger_start": decode_entry,
    "ledger_step": decode_entry,
    "ledger_checkpoint": decode_entry,
    "ledger_update": decode_entry,
    "ledger_adopt": decode_entry,
    "feedback": Feedback.decode,
    "dead_letter": DeadLetter.decode,
    "eval": EvalResult.decode,
    "worker": WorkerEntry.decode,
    "site": Site.decode,
    "site_update": SiteUpdate.decode,
    "rounds_start": decode_rounds_entry,
    "rounds_round": decode_rounds_entry,
    "rounds_merge": decode_rounds_entry,
}
