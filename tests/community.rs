//! The Community servers, as the program finds, uses, watches and leaves them: names with several addresses, servers
//! that are this program itself, and the limits of the sandbox.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "community/addresses.rs"]
mod addresses;
#[path = "faults/dns.rs"]
mod dns;
#[path = "community/draining.rs"]
mod draining;
#[path = "community/loops.rs"]
mod loops;
#[path = "faults/namespaces.rs"]
mod namespaces;
#[path = "community/sandbox.rs"]
mod sandbox;
#[path = "community/shortage.rs"]
mod shortage;
mod support;
