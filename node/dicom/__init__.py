"""The DICOM wire. Everything passes through `node.ingest` or `node.gateway`."""
