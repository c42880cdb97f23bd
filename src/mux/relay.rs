//! Relays a session's bytes in both directions, on one task, and closes the session.
//!
//! An idle session holds no buffer. Bytes are read, when there are some, into a buffer that all sessions of a thread
//! share, and only what a full receiver does not take is kept. As long as there is something for a full receiver, its
//! sender is not read: TCP then holds the sender back.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    MuxContext,
    admission::Ticket,
    closing::{Awaited, Closing},
    direction::{RelayDirection, RelayEvent},
    end::{CommunityFault, End, OrderlyEnd, Side, is_after_close},
    facts::{FrameObserver, SessionFacts},
    report::report,
};
use crate::{
    stream::{Arrival, Link, Stream, Via},
    telemetry::Direction,
};

/// A session: its two streams, and what is known of them. Everything that lasts as long as the session is here, so that
/// the session's task stores it once.
pub(super) struct Relay {
    pub(super) context: Arc<MuxContext>,
    pub(super) via: Via,
    pub(super) client: Stream,
    /// `None` until the link is open, and when it is over while the client is not yet. If it was never opened, the
    /// direction to the Community has failed.
    pub(super) link: Option<Link>,
    pub(super) to_community: RelayDirection,
    pub(super) to_client: RelayDirection,
    pub(super) facts: SessionFacts,
    /// There is one as soon as the session begins to close.
    closing: Option<Box<TimedClosing>>,
    /// Dropped last: the client is counted until its streams are closed.
    pub(super) ticket: Ticket,
}

/// A session that closes, with its timer.
struct TimedClosing {
    closing: Closing,
    timer: Pin<Box<Sleep>>,
}

/// What a closing session does next.
enum Next {
    /// Its state has changed: its directions have something to do.
    GoOn,
    /// Nothing: it is over.
    Over,
}

impl Relay {
    /// The session of a client that was just admitted.
    pub(super) fn new(context: Arc<MuxContext>, arrival: Arrival, ticket: Ticket) -> Self {
        let Arrival { stream, first, via } = arrival;
        let max_frame = context.settings.load().max_frame;
        Self {
            context,
            via,
            client: stream,
            link: None,
            to_community: RelayDirection::with_first(first.into()),
            to_client: RelayDirection::default(),
            facts: SessionFacts::new(max_frame),
            closing: None,
            ticket,
        }
    }

    /// Relays bytes until the session is over. There must be a link, or the session must have ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // An order wakes the task: it has the waker since the session was opened, and a task has one waker all its life.
        if let Some(order) = self.ticket.entry.order() {
            self.end_at_once(End::Ordered(order));
        }
        loop {
            match self.poll_directions(cx) {
                (Poll::Pending, Poll::Pending) => match ready!(self.poll_closing(cx)) {
                    Next::GoOn => (),
                    Next::Over => return Poll::Ready(()),
                },
                (to_client, to_community) => {
                    if let Poll::Ready(event) = to_client {
                        self.on_event(Side::Community, event);
                    }
                    if let Poll::Ready(event) = to_community {
                        self.on_event(Side::Client, event);
                    }
                }
            }
        }
    }

    /// Relays bytes in both directions: to the client, and to the Community.
    fn poll_directions(&mut self, cx: &mut Context<'_>) -> (Poll<RelayEvent>, Poll<RelayEvent>) {
        let mut nowhere;
        let link = match &mut self.link {
            Some(link) => &mut link.stream,
            None => {
                nowhere = Stream::other(tokio::io::empty());
                &mut nowhere
            }
        };
        let ticket = &self.ticket;
        let observer = FrameObserver { ticket, telemetry: &self.context.telemetry, accepted: self.via.accepted };
        let (facts, most) = (&mut self.facts, ticket.may_read());
        let is_over = self.to_community.is_over();
        let to_client = self.to_client.poll(is_over, (link, &mut self.client), cx, most, |scanner, bytes| {
            facts.follow(Direction::ToClient, scanner, bytes, observer)
        });
        let is_over = self.to_client.is_over();
        let to_community = self.to_community.poll(is_over, (&mut self.client, link), cx, most, |scanner, bytes| {
            facts.follow(Direction::ToCommunity, scanner, bytes, observer)
        });
        ticket.holds(self.to_community.kept.len() + self.to_client.kept.len());
        (to_client, to_community)
    }

    /// The direction whose receiver is `side`.
    fn toward(&mut self, side: Side) -> &mut RelayDirection {
        match side {
            Side::Client => &mut self.to_client,
            Side::Community => &mut self.to_community,
        }
    }

    /// Something has happened in the direction whose sender is `sender`.
    fn on_event(&mut self, sender: Side, event: RelayEvent) {
        match event {
            RelayEvent::Discarded => {
                let has_received_everything = self.toward(sender).receiver_is_done();
                if let (true, Some(timed)) = (has_received_everything, &mut self.closing) {
                    timed.closing.discards(Instant::now());
                }
            }
            RelayEvent::SenderClosed => self.close_because(End::closed_by(sender)),
            RelayEvent::SenderFailed(error) => self.read_failed(sender, error),
            RelayEvent::ReceiverFailed(error) => {
                let receiver = sender.other();
                let is_close = is_after_close(&error);
                self.close_because(if is_close { End::closed_by(receiver) } else { End::broken(receiver, error) });
            }
            RelayEvent::InvalidFrame(error) => self.end(End::invalid_frame(sender, error)),
        }
        if !self.to_client.relays() && !self.to_community.relays() {
            self.finish();
        }
    }

    /// The client has closed before there was a link, or its stream has failed.
    pub(super) fn client_ended(&mut self, read: io::Result<()>) {
        self.to_community.end_sender();
        match read {
            Ok(()) => self.close_because(End::closed_by(Side::Client)),
            Err(error) => {
                self.read_failed(Side::Client, error);
                self.finish();
            }
        }
    }

    /// A read from the stream of `side` failed, so nothing can be written to it either.
    fn read_failed(&mut self, side: Side, error: io::Error) {
        self.toward(side).fail();
        let end = End::broken(side, error);
        match &mut self.closing {
            Some(timed) => timed.closing.read_fails(end),
            None => self.close_because(end),
        }
    }

    /// Begins to close because of `cause`, unless there is another cause already.
    fn close_because(&mut self, cause: End) {
        let farewells = self.facts.farewells();
        self.closing.get_or_insert_with(|| {
            let closing = Closing::new(cause, farewells, Instant::now());
            let timer = Box::pin(sleep_until(closing.deadline(Awaited::Anything)));
            Box::new(TimedClosing { closing, timer })
        });
    }

    /// Ends the session: nothing is relayed any more.
    pub(super) fn end(&mut self, end: End) {
        match &mut self.closing {
            Some(timed) => timed.closing.cut_short(end),
            None => self.close_because(end),
        }
        if self.link.is_none() {
            // No server waits for anything.
            self.to_community.fail();
            self.to_client.end_sender();
        }
        self.finish();
    }

    /// Ends the session in little time.
    pub(super) fn end_at_once(&mut self, end: End) {
        self.end(end);
        if let Some(timed) = &mut self.closing {
            timed.closing.hurry(Instant::now());
        }
    }

    /// Decides the reason and reports it. Each side gets its last bytes.
    fn finish(&mut self) {
        let farewells = self.facts.farewells();
        let Some(timed) = &mut self.closing else { return };
        if timed.closing.is_finishing() {
            return;
        }
        let end = timed.closing.finish(farewells, Instant::now());
        if let (Some(link), End::Community(CommunityFault::Broken(_))) = (&self.link, end) {
            link.lease.broken();
        }
        let server = self.link.as_ref().map(|link| &*link.server);
        let bytes = (self.to_community.bytes, self.to_client.bytes);
        report(&self.context, &self.via, end, server, self.facts.is_logged_in(), bytes);
        // In the middle of a frame the client would not understand a message, and after the Community's own one it
        // needs no other.
        if let Some(reason) = end.farewell()
            && self.to_client.scanner.at_boundary()
            && !farewells.include(Side::Community)
        {
            self.to_client.append(&reason.destroy());
        }
        self.to_client.finish();
        self.to_community.finish();
    }

    /// Waits for the next state of a closing session, when its directions have nothing to do.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let (awaited, Some(timed)) = (self.awaited(), &mut self.closing) else { return Poll::Pending };
        let is_finishing = timed.closing.is_finishing();
        if is_finishing && self.to_community.receiver_is_done() && is_gone(&self.to_client, &self.to_community) {
            // The server has one session less, although the client may take its time.
            self.link = None;
        }
        match awaited {
            // Where no receiver is open, the session is finishing.
            None => return Poll::Ready(Next::Over),
            // The Community has closed, and both sides know why: the client has nothing more to say.
            _ if !is_finishing
                && self.facts.farewells().first().is_some()
                && self.to_client.sender_has_ended()
                && self.to_community.kept.is_empty() =>
            {
                self.finish();
                return Poll::Ready(Next::GoOn);
            }
            _ => (),
        }
        let position = self.to_client.position().wrapping_add(self.to_community.position());
        if timed.closing.accepts(position, Instant::now()) {
            self.ticket.heard();
        }
        let deadline = timed.closing.deadline(awaited.unwrap_or(Awaited::Anything));
        if timed.timer.deadline() != deadline {
            timed.timer.as_mut().reset(deadline);
        }
        ready!(timed.timer.as_mut().poll(cx));
        if is_finishing {
            return Poll::Ready(Next::Over);
        }
        self.end_at_once(End::Orderly(OrderlyEnd::HalfClosed));
        Poll::Ready(Next::GoOn)
    }

    /// What a closing session waits for; `None`: nothing, if it is finishing.
    fn awaited(&self) -> Option<Awaited> {
        let both_are_done = self.to_client.receiver_is_done() && self.to_community.receiver_is_done();
        match (is_gone(&self.to_community, &self.to_client), is_gone(&self.to_client, &self.to_community)) {
            (true, true) if both_are_done => None,
            (false, true) if both_are_done => Some(Awaited::ClientsClose),
            _ => Some(Awaited::Anything),
        }
    }
}

/// Whether a side has closed, or can do nothing with what it would still receive. `from` is the direction from it, and
/// `to` the direction to it.
fn is_gone(from: &RelayDirection, to: &RelayDirection) -> bool {
    to.has_failed() || from.sender_has_ended()
}
