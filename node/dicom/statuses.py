"""What may be answered: statuses of DIMSE responses and rejections of an association, by the standard's names.

PS3.7 Annex C for all operations; PS3.4 Tables B.2-1, C.4-1 and C.4-2 for storage and query/retrieve; PS3.8 Table 9-21 for
rejections. Leaves which of them is answered when to `services` and `connection`, and what they mean in words to `sender`.
"""

from __future__ import annotations

from .pdu import AssociateRj

SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
PROCESSING_FAILURE = 0x0110
DUPLICATE_SOP_INSTANCE = 0x0111
NO_SUCH_SOP_INSTANCE = 0x0112
INVALID_ARGUMENT = 0x0115
NO_SUCH_ACTION = 0x0123
NOT_AUTHORIZED = 0x0124
UNRECOGNIZED_OPERATION = 0x0211
RESOURCE_LIMITATION = 0x0213
OUT_OF_RESOURCES = 0xA700
CANNOT_COUNT = 0xA701
CANNOT_SEND = 0xA702
UNKNOWN_DESTINATION = 0xA801
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
DAMAGED = 0xC001
SOME_FAILED = 0xB000

# Result, source, reason.
CALLED_AE_NOT_RECOGNIZED = AssociateRj(1, 1, 7)
CALLING_AE_NOT_RECOGNIZED = AssociateRj(1, 1, 3)
APPLICATION_CONTEXT_NOT_SUPPORTED = AssociateRj(1, 1, 2)
PROTOCOL_VERSION_NOT_SUPPORTED = AssociateRj(1, 2, 2)
TEMPORARY_CONGESTION = AssociateRj(2, 3, 1)
LOCAL_LIMIT_EXCEEDED = AssociateRj(2, 3, 2)
