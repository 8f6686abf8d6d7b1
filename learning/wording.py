"""The words that both daemons and Flower's processes speak: kinds of messages, and how a run can end. Needs no flwr."""

from __future__ import annotations

from enum import StrEnum

TRAIN, EVALUATE, VOID = "train", "evaluate", "void"


class Ending(StrEnum):
    """Why a run did not finish: fixed sentences, so that every page can say them in the reader's language."""

    NOT_CONNECTED = "Too few sites are connected."
    TOO_FEW = "Too few sites took part in a round."
    DEADLINE = "The plan's deadline passed before the last round."
    NOT_FINITE = "The averaged model is not finite."
    NO_MODEL = "The run ended without a measured model."
    STOPPED = "Stopped by the researcher."
    HUB_STOPPED = "The hub stopped during the run."
    FLOWER_ENDED = "The learning service ended during the run."
    FLOWER_FAILED = "The run was stopped, or Flower failed."
    HUB_FAILED = "The run failed in the hub."
