//! HTTP as clients, web servers and browsers expect it: how connections end, and what reaches the web back end.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

#[path = "web/closing.rs"]
mod closing;
