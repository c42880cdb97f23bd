//! placeholder
pub mod admin;
pub mod community;
pub mod config;
pub mod ingress;
pub mod mux;
pub mod stream;
pub mod telemetry;
pub mod throttle;
pub mod wire;
