//! The load generator: simulated clients that log in, stay and chat, over every transport.
//!
//! ```text
//!  run ── worker process ──┬── client ── connect ── raw | TLS | tunnel ── the multiplexer
//!   │  ◀── a line a second ┘     └── every message checked: once, in order, whole
//!   └── report: table, JSON, HTML
//! ```
//!
//! `scenario` says what the clients do, `run` starts workers and watches them, `worker` is one
//! process of clients, `client` one client's life, `connect` and `tunnel` its ways in,
//! `hostile` the one that means no good, `setup` what they share, `figures` what is counted, `report` how it is shown.
//!
//! Arrivals and messages follow a plan that does not wait for answers, and every latency
//! counts from the planned time: a server that stalls can't hide behind clients that wait.

mod client;
mod connect;
mod figures;
mod hostile;
mod random;
mod report;
mod run;
mod scenario;
mod setup;
mod tunnel;
mod worker;

pub use connect::{Proxies, Route, any_certificate};
pub use figures::{Figures, Latencies, Second};
pub use report::{html, table, verdict};
pub use run::{Fault, Outcome, Plan, Point, run};
pub use scenario::{Cut, Mix, Scenario, Sizes, Way};
pub use worker::work;
