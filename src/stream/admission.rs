//! The seam between ingress and the core.

use std::sync::Arc;

use super::Arrival;
use crate::{limits::Budget, telemetry::outcome::Refusal};

/// The core, as ingress sees it.
pub trait Core: Send + Sync + 'static {
    /// Admits a client and serves it to its end on a task of its own. If the client is refused, returns it with the
    /// reason, so that ingress can send the refusal over the client's transport. Does not block.
    ///
    /// # Errors
    /// The refusal, which is already counted and logged, and the arrival without changes.
    fn take(&self, arrival: Arrival) -> Result<(), Box<(Refusal, Arrival)>>;

    /// The budget for bytes that are held because a peer is slow. Ingress and the core share it. A core without a limit
    /// has this default.
    fn budget(&self) -> Arc<Budget> {
        Budget::new(usize::MAX, 0, &[])
    }
}
