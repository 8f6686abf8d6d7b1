"""The one way out: facts → decide → record → open a view or release sealed bytes.

Whoever shows, sends or trains on an image asks here. Nothing is returned before the rules have said yes with facts
as of now, the deed is durable in the log, and the bytes were proved to be those that arrived. Obligations are
carried out here: the watermark is burned in, ends are kept, emergencies are told.

`gateway` is the table of contents; each room holds one way out. `reading` is the only module of the node that reads
the vault. Leaves rules to `consent`, where a study lies to `shelves`, pictures to `imaging`.
"""

from node.copies import ObjectKeys
from node.gateway.gateway import Gateway
from node.openings import InstanceBytes, InstanceView, Opening, Rendered, SeriesView

__all__ = ["Gateway", "InstanceBytes", "InstanceView", "ObjectKeys", "Opening", "Rendered", "SeriesView"]
