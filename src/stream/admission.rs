//! The seam between ingress and the multiplexer core.

use std::sync::Arc;

use super::Arrival;
use crate::{limits::Budget, telemetry::outcome::Refusal};

/// What ingress hands its arrivals to.
pub trait Core: Send + Sync + 'static {
    /// Takes the client in and serves it to its end, on a task of its own; or gives it back
    /// with the reason, for ingress to refuse it in the client's own protocol. Does not wait.
    ///
    /// # Errors
    /// The refusal, counted already, and the arrival as it was.
    fn take(&self, arrival: Arrival) -> Result<(), Box<(Refusal, Arrival)>>;

    /// What counts the bytes that are held for slow clients; one for all ways in. By default
    /// there is no bound.
    fn budget(&self) -> Arc<Budget> {
        Budget::new(usize::MAX, 0, &[])
    }
}
