//! `tapline oci-hook`: a network for containers of OCI runtimes.
