"""The words of an order that both daemons and Flower's processes speak. Needs no flwr."""

TRAIN, EVALUATE, VOID = "train", "evaluate", "void"
