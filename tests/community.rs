//! The Community servers, as the program finds and uses them.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "community/addresses.rs"]
mod addresses;
#[path = "faults/namespaces.rs"]
mod namespaces;
mod support;
