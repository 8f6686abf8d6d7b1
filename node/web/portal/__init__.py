"""The portal: pages rendered at the node, in Chinese and English, without third-party browser code."""
