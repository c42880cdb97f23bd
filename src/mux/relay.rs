//! Relays a session's bytes in both directions, on one task.
//!
//! An idle session holds no buffer. Bytes are read, when there are some, into a buffer that all sessions of a thread
//! share, and only what a full receiver does not take is kept. As long as there is something for a full receiver, its
//! sender is not read: TCP then holds the sender back.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Sleep;

use super::{
    MuxContext,
    admission::Ticket,
    direction::{RelayDirection, Step},
    end::{ClientFault, CommunityFault, End, OrderlyEnd},
    facts::{FrameObserver, SessionFacts},
};
use crate::{
    stream::{Arrival, Link, Stream, Via},
    telemetry::Direction,
};

/// When one side has closed, how long the other one may take to close, too.
const HALF_CLOSED: Duration = Duration::from_secs(30);

/// A session: its two streams, and what is known of them. Everything that lasts as long as the session is here, so that
/// the session's task stores it once.
pub(super) struct Relay {
    pub(super) context: Arc<MuxContext>,
    pub(super) ticket: Ticket,
    pub(super) via: Via,
    pub(super) client: Stream,
    /// `None` until the link is open, and while the session closes.
    pub(super) link: Option<Link>,
    pub(super) to_community: RelayDirection,
    pub(super) to_client: RelayDirection,
    pub(super) facts: SessionFacts,
    /// Runs since one side has closed.
    half_closed: Option<Pin<Box<Sleep>>>,
    /// Whether that side was the Community.
    community_closed_first: bool,
    /// Whether an order wakes the session's task.
    waits_for_order: bool,
}

impl Relay {
    /// The session of a client that was just admitted.
    pub(super) fn new(context: Arc<MuxContext>, arrival: Arrival, ticket: Ticket) -> Self {
        let Arrival { stream, first, via } = arrival;
        let max_frame = context.settings.load().max_frame;
        Self {
            context,
            ticket,
            via,
            client: stream,
            link: None,
            to_community: RelayDirection::with_first(first.into()),
            to_client: RelayDirection::default(),
            facts: SessionFacts::new(max_frame),
            half_closed: None,
            community_closed_first: false,
            waits_for_order: false,
        }
    }

    /// Relays bytes until the session ends. There must be a link.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        // A task has the same waker all its life, so registering it once is enough.
        if !std::mem::replace(&mut self.waits_for_order, true) {
            self.ticket.entry.poll_order(cx);
        }
        if let Some(order) = self.ticket.entry.order() {
            return Poll::Ready(End::Ordered(order));
        }
        let Some(Link { stream: link, .. }) = &mut self.link else { return Poll::Pending };
        let ticket = &self.ticket;
        let observer = FrameObserver { ticket, telemetry: &self.context.telemetry, accepted: self.via.accepted };
        let (facts, most) = (&mut self.facts, ticket.may_read());
        let to_client =
            self.to_client.poll(self.to_community.state, (link, &mut self.client), cx, most, |scanner, bytes| {
                facts.follow(Direction::ToClient, scanner, bytes, observer)
            });
        let to_community =
            self.to_community.poll(self.to_client.state, (&mut self.client, link), cx, most, |scanner, bytes| {
                facts.follow(Direction::ToCommunity, scanner, bytes, observer)
            });
        ticket.holds(self.to_community.kept.len() + self.to_client.kept.len());
        let end = match (to_community, to_client) {
            (Poll::Ready(Step::InvalidFrame(error)), _) => End::Client(ClientFault::Frame(error)),
            (_, Poll::Ready(Step::InvalidFrame(error))) => End::Community(CommunityFault::Frame(error)),
            (Poll::Ready(Step::SenderFailed(error)), _) | (_, Poll::Ready(Step::ReceiverFailed(error))) => {
                facts.client_failed(error)
            }
            (_, Poll::Ready(Step::SenderFailed(error))) | (Poll::Ready(Step::ReceiverFailed(error)), _) => {
                facts.community_failed(error)
            }
            (Poll::Ready(Step::Ended), Poll::Ready(Step::Ended)) => {
                let community_first = self.community_closed_first;
                let end = if community_first { OrderlyEnd::CommunityClosed } else { OrderlyEnd::ClientClosed };
                facts.end(End::Orderly(end))
            }
            (Poll::Pending, Poll::Pending) => return Poll::Pending,
            // The Community has closed and the client knows why, so the client has nothing more to send.
            (Poll::Pending, _) if facts.has_farewell() => facts.end(End::Orderly(OrderlyEnd::CommunityClosed)),
            (to_community, _) => {
                let timer = self.half_closed.get_or_insert_with(|| {
                    self.community_closed_first = to_community.is_pending();
                    Box::pin(tokio::time::sleep(HALF_CLOSED))
                });
                ready!(timer.as_mut().poll(cx));
                facts.end(End::Orderly(OrderlyEnd::HalfClosed))
            }
        };
        Poll::Ready(end)
    }
}
