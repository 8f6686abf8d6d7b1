"""The agent beside a modality: takes plain DICOM on loopback, seals at once, forwards over mutual TLS, keeps until the
node says that an instance is durable. `spool` keeps, `forwarding` sends, `agent` puts them together, `wiping` destroys."""
