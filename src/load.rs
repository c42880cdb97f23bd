//! The load generator: simulated clients that log in, stay and chat, over every transport.
//!
//! ```text
//!  run ── worker process ──┬── client ── frame_connection ── raw | TLS | tunnel ── the multiplexer
//!   │  ◀─ a report a second ┘     └── pending: each echo arrives once, in order and unchanged
//!   └── report: table, JSON, HTML
//! ```
//!
//! | part | content |
//! |---|---|
//! | `scenario` | what the clients do, as a TOML file describes it |
//! | `run` | starts the worker processes, adds up their reports, applies the stop rule |
//! | `worker` | one process of clients |
//! | `client`, `hostile` | the life of one client, and of one that attacks the server |
//! | `pending`, `messages` | messages that wait for their echo; the messages that clients send |
//! | `frame_connection`, `connect`, `tunnel` | a client's connection: frames, proxies and TLS, the HTTP tunnel |
//! | `setup` | what the clients of one process share |
//! | `figures`, `report` | what is counted, and how it is shown |
//!
//! Log-ins and messages follow a schedule that does not wait for responses, and every latency counts from
//! the scheduled time. So a server that stalls cannot hide behind clients that wait for it.

mod client;
mod connect;
mod figures;
mod frame_connection;
mod hostile;
mod messages;
mod pending;
mod random;
mod report;
mod run;
mod scenario;
mod setup;
mod streaming;
mod tunnel;
mod worker;

pub use connect::{LoadRoute, Proxies, any_certificate};
pub use figures::{Latencies, LoadFigures, TransportFigures};
pub use report::{html, table, verdict};
pub use run::{LoadError, LoadPlan, LoadResult, SecondSummary, run};
pub use scenario::{LoadTransport, MessageSizes, NetworkCut, Scenario, TransportMix};
pub use worker::run_worker;
