"""Where the root key lives: implementations of one seam (wrap and unwrap key-encryption keys)."""
