//! placeholder
pub mod admin;
pub mod community;
pub mod ingress;
pub mod mux;
pub mod stream;
pub mod wire;
