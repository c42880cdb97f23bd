//! An open, fast and safe **Community multiplexer for Sametime**. The instant-messaging clients of HCL/IBM Sametime
//! connect to it, over every transport that they have: raw TCP, TLS, and the HTTP tunnel, each directly or through
//! proxies. It relays each client's session to a Community server.
//!
//! This page is the map of the crate. `docs/architecture.md` has the reasons of the design.
//!
//! # How a client gets to its Community server
//!
//! ```text
//!                     ┌────────┐
//!                     ▼        │
//!  port ─▶ accept ─▶ detect ─▶ TLS
//!                     │
//!                     ├─▶ raw ──────────────┐
//!                     └─▶ HTTP ─┬─▶ tunnel ─┴─▶ Arrival ─▶ admission ─▶ session ─▶ pool ─▶ Link ─▶ Community server
//!                               └─▶ back end ─▶ web server
//! └───────────────── ingress ──────────────┘ └ stream ┘ └──────── mux ───────┘ └ community ┘
//! ```
//!
//! The first bytes of a connection decide how it continues, on every port. All transports end in the same [`Arrival`]:
//! a byte stream, its first bytes, and where the client comes from. The core does not know the transports.
//!
//! # Which way the bytes go
//!
//! ```text
//!  client ──▶ socket ──▶ TLS: decrypts ──▶ tunnel: takes bytes out of requests ──▶ relay ──▶ Link ──▶ Community server
//!  client ◀── socket ◀── TLS: encrypts ◀── tunnel: puts bytes into responses   ◀── relay ◀── Link ◀── Community server
//! ```
//!
//! TLS and the tunnel are there only if the client uses them. One task moves the bytes of a session in both directions.
//! A receiver that is full stops the reading from its sender.
//!
//! # The floors
//!
//! A room imports only rooms that are further down. `tests/architecture.rs` checks this, between the rooms and inside
//! them.
//!
//! | floor | room | what it has |
//! |---|---|---|
//! | 2 | [`cli`] | one file for each command: arguments, signals, exit codes |
//! | 3 | [`server`] | composes the rooms below; reload, drain, ports |
//! | 4 | [`load`] | the load generator: simulated clients and their report |
//! | 5 | [`config`] | reads the configuration database and builds the settings |
//! | 6 | [`admin`] | the admin endpoint: health, metrics, status, reload |
//! | 7 | [`ingress`] | accepts connections, detects protocols; TLS, HTTP, tunnel |
//! | 7 | [`mux`] | the core: admission, sessions, relay |
//! | 7 | [`community`] | the Community servers: choice, health, links |
//! | 7 | [`sandbox`] | a small Community server for trials and tests |
//! | 8 | [`cluster`] | the other nodes of a cluster: names, proofs, requests that are passed to them |
//! | 8 | [`trunk`] | many clients over few connections to a Community server: the near end and the far end |
//! | 9 | [`stream`] | the seams between the rooms of floor 7: arrivals, refusals, links, the core's trait |
//! | 10 | [`telemetry`] | what happened: closed enums of outcomes, and the metrics |
//! | 11 | [`limits`] | counting in total and for each address |
//! | 12 | [`runtime`] | worker threads, sharing of cores, the shared read buffer |
//! | 13 | [`net`] | the system's sockets, names and addresses |
//! | 14 | [`log`] | the log's subscriber, the line writer, the throttle for rare lines |
//! | 15 | [`wire`] | bytes to values and back, without I/O |
//!
//! Floor 1 is the program itself, which only calls [`cli::main`]. The rooms of floor 7 do not import each other: they
//! meet at the traits of [`stream`], and only [`server`] knows which types implement them.
//!
//! # Where do I find ...
//!
//! | what | where |
//! |---|---|
//! | the first bytes decide on the protocol | [`ingress::detect`], asked by [`ingress::identify`] for [`ingress::connection`](ingress) |
//! | the form of an HTTP request is checked | [`ingress::http::guard`](ingress::http), by the rules of [`ingress::http::framing`](ingress::http) |
//! | an HTTP request goes to the tunnel, to the web server, or gets a 404 | [`ingress::http::route`](ingress::http) |
//! | the headers that tell the web server who asked | [`ingress::http::backend`](ingress::http), in `origin_headers` |
//! | a request that comes back to this program is cut | [`net::loop_guard`], asked by [`ingress::http::backend`](ingress::http) |
//! | a connection is closed so that its last bytes arrive | [`stream::close_in_stages`] |
//! | a tunnel request gets a 404 | [`ingress::tunnel::service`](ingress::tunnel); [`ingress::http::tunnel_request`](ingress::http) sends it late |
//! | the order of a tunnel session's requests, and what waits | [`ingress::tunnel::live`](ingress::tunnel) |
//! | the tunnel's acknowledgement is checked | [`ingress::tunnel::session`] |
//! | a request is for a session of another node | [`ingress::http::passing`](ingress::http) asks [`cluster`]; [`ingress::peers`] accepts the requests of other nodes |
//! | a streaming client's GET request becomes a session | [`ingress::http::streaming`](ingress::http); the session is [`ingress::tunnel::streaming`](ingress::tunnel) |
//! | the bytes of a tunnel request are read and written | [`wire::tunnel::envelope`], streaming: [`wire::tunnel::stream`]; encryption: [`wire::tunnel::cipher`] |
//! | a client is counted, or refused | [`mux::admission`](mux) |
//! | a connection that is not a client yet is counted | [`ingress::connection_limits`](ingress) |
//! | the client's address is written into the Handshake | [`wire::message::stamp_client_address`], called by [`mux::opening`](mux) |
//! | the memory of a slow client is bounded | [`limits::budget`], asked by [`mux::relay`](mux) and [`ingress::tunnel::live`](ingress::tunnel) |
//! | a Community server is chosen | [`community::pool`](community), by [`community::balance`](community) |
//! | a Community server is checked | [`community::endpoint`](community), by [`community::health`](community) |
//! | a stream of a trunk is opened | [`trunk::near`](trunk), called by `Endpoint::open_stream` in [`community::endpoint`](community) |
//! | a trunk is accepted | [`trunk::far`](trunk), called by [`ingress::trunk_listener`](ingress) |
//! | SIGHUP is handled | [`cli::run`] receives it, [`server::reload`] exchanges the settings |
//! | a reload is refused that is probably a mistake | `server::reload_guard` |
//! | SIGTERM is handled | [`cli::run`] receives it, [`server::drain`] drains |
//! | a service manager's sockets are taken | [`net::activation`]; [`ingress::accept`] accepts on them, [`server::drain`] leaves them to the next process |
//! | a service manager is told the state | [`cli::service_manager`](cli) |
//! | a port is opened or closed | [`server::ports`], by the plan of [`server::plan`](server) |
//! | a port that is down is tried again | [`server::retry`](server) |
//! | the `host_name` of a port is looked up | [`net::resolve`], called by [`server::host_names`](server) |
//! | a key of the configuration is declared | [`config::schema`], with one file for each group of sections |
//! | a page of the admin endpoint is added | [`admin::pages`] |
//! | a reason is added for which something ends, or is refused | [`telemetry::outcome`] |
//! | a metric is added | [`telemetry::metrics`], with one file for each domain |
//!
//! [`Arrival`]: stream::Arrival
// The map links to private modules. The documentation is built with `--document-private-items`, so these links work; a
// link to a module that does not exist is still an error.
#![allow(rustdoc::private_intra_doc_links)]
// The macros that print panic if the output can't be written. `cli::output` writes what a command prints.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod admin;
pub mod cli;
pub mod cluster;
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
pub mod trunk;
pub mod wire;
