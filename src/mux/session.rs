//! The life of a session.
//!
//! ```text
//!   collecting ──────► connecting ──────► relaying ──────► closing ──► counted out
//!    the first frame    a link to a        bytes in both    what was sent before,
//!       │               server   │         directions  │    the farewell message
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
//! | closing | [`Relay::poll`] | written, shut down, read and discarded | written, shut down, read and discarded |
//!
//! `closing` has the states of a session that closes.

use std::{
    future::{Future, poll_fn},
    sync::Arc,
};

use super::{MuxContext, admission::Ticket, opening, relay::Relay};
use crate::stream::Arrival;

/// Serves a client to its end. What lasts as long as the session is in `relay`, once. The future of the short states is
/// boxed, so that the session does not carry its memory while it relays.
pub(super) fn run(context: Arc<MuxContext>, arrival: Arrival, ticket: Ticket) -> impl Future<Output = ()> + Send {
    let mut relay = Relay::new(context, arrival, ticket);
    async move {
        Box::pin(opening::open(&mut relay)).await;
        poll_fn(|cx| relay.poll(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Instant};

    use bytes::Bytes;

    use super::*;
    use crate::{
        mux::{Mux, tests::settings},
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
        let mux = Mux::start(settings(), Arc::new(NoCommunity), Telemetry::new("0"));
        let client = SocketAddr::from(([192, 0, 2, 1], 4000));
        let via = Via { client, port: 1533.into(), transport: Transport::Raw, accepted: Instant::now() };
        let Ok(ticket) = mux.0.admission.admit(&mux.0.settings.load(), &via) else { panic!("there is room") };
        let arrival = Arrival { stream: Stream::other(tokio::io::empty()), first: Bytes::new(), via };
        let size = size_of_val(&run(Arc::clone(&mux.0), arrival, ticket));
        println!("{size} bytes");
        assert!(size <= LARGEST_FUTURE, "{size} bytes");
    }
}
