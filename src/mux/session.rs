//! The life of a session.
//!
//! ```text
//!   collecting ──────► connecting ──────► relaying ──────► closing ──► counted out
//!    the first frame    a link to a        bytes in both    last bytes,
//!       │               server   │         directions  │    farewell
//!       │                        │                     │       ▲
//!       └────────────────────────┴─────────────────────┴───────┘
//!                 an `End`: closed, a fault, a limit, an order
//! ```
//!
//! | state | function | the client's stream | the link |
//! |---|---|---|---|
//! | collecting | [`opening::open`] | read | none |
//! | connecting | [`opening::open`] | read once | none |
//! | relaying | [`Relay::poll`] | read and written | read and written |
//! | closing | [`closing::finish`] | written, then read and discarded | closed |

use std::{
    future::{Future, poll_fn},
    sync::Arc,
};

use super::{MuxContext, admission::Ticket, closing, opening, relay::Relay};
use crate::stream::Arrival;

/// Serves a client to its end. What lasts as long as the session is in `relay`, once. The futures of the short states
/// are boxed, so that the session does not carry their memory while it relays.
pub(super) fn run(context: Arc<MuxContext>, arrival: Arrival, ticket: Ticket) -> impl Future<Output = ()> + Send {
    let mut relay = Relay::new(context, arrival, ticket);
    async move {
        let end = match Box::pin(opening::open(&mut relay)).await {
            Ok(()) => poll_fn(|cx| relay.poll(cx)).await,
            Err(end) => end,
        };
        Box::pin(closing::finish(relay, end)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        time::{Duration, Instant},
    };

    use bytes::Bytes;

    use super::*;
    use crate::{
        mux::{Mux, MuxSettings},
        stream::{Community, Linking, MoreFromClient, Stream, Via},
        telemetry::Telemetry,
        wire::Transport,
    };

    /// With tokio's part of a task, a session takes 512 bytes. tokio rounds up to a multiple of 128.
    const LARGEST_FUTURE: usize = 424;

    struct NoCommunity;

    impl Community for NoCommunity {
        fn connect<'a>(&'a self, _: SocketAddr, _: &'a [u8], _: MoreFromClient<'a>) -> Linking<'a> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test]
    async fn the_future_of_a_session_stays_small() {
        let settings = MuxSettings {
            capacity: 1,
            per_address: 0,
            logging_in: 1,
            logging_in_per_address: 0,
            held_bytes: 1 << 20,
            held_bytes_per_address: 0,
            exempt: Vec::new(),
            login_timeout: Duration::from_secs(30),
            logging_in_timeout: None,
            idle_timeout: None,
            max_frame: 1 << 20,
            drain_timeout: Duration::ZERO,
        };
        let mux = Mux::start(settings, Arc::new(NoCommunity), Telemetry::new("0"));
        let client = SocketAddr::from(([192, 0, 2, 1], 4000));
        let via = Via { client, port: 1533.into(), transport: Transport::Raw, accepted: Instant::now() };
        let Ok(ticket) = mux.0.admission.admit(&mux.0.settings.load(), &via) else { panic!("there is room") };
        let arrival = Arrival { stream: Stream::other(tokio::io::empty()), first: Bytes::new(), via };
        let size = size_of_val(&run(Arc::clone(&mux.0), arrival, ticket));
        println!("{size} bytes");
        assert!(size <= LARGEST_FUTURE, "{size} bytes");
    }
}
