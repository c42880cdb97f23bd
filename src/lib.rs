//! An open, fast, safe **Community multiplexer for Sametime**: what instant-messaging clients
//! of HCL/IBM Sametime connect to. It listens on many ports, takes every way in that those
//! clients have, and feeds every stream into one core in front of the Community server.
//!
//! ```text
//!  port ── listener ── detect ──┬── raw ─────────────┐
//!                               ├── TLS ── detect ───┤
//!                               └── HTTP ── tunnel ──┼── Arrival ── mux ── link ── Community server
//!                                     └── web back end
//! ```
//!
//! The floors, from the top; imports go down only (`tests/architecture.rs` holds them to it):
//!
//! | floor | what it does |
//! |---|---|
//! | [`cli`] | one file for each command; arguments, logs, signals, exit codes |
//! | [`server`] | binds, wires, reloads, drains: the one place that joins the floors below |
//! | [`config`], [`admin`] | the configuration database; health, metrics, status, reload |
//! | [`ingress`] \| [`mux`] \| [`community`] | the ways in, the core, the links: blind to each other, they meet at the traits of [`stream`] |
//! | [`telemetry`], [`limits`], [`runtime`] | counters, rare log lines, threads that share a core |
//! | [`stream`], [`wire`] | streams and arrivals, frames and messages |
//!
//! Two guests: [`sandbox`], a small Community server for trying things out and for tests, and
//! [`load`], simulated clients and their report.

pub mod admin;
pub mod cli;
pub mod community;
pub mod config;
pub mod ingress;
pub mod limits;
pub mod load;
pub mod log;
pub mod mux;
pub mod net;
pub mod runtime;
pub mod sandbox;
pub mod server;
pub mod stream;
pub mod telemetry;
pub mod wire;
