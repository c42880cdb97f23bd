//! The states *collecting* and *connecting* of a session: the client's first frame, and a link to a server that has it.

use std::{
    future::{Future, poll_fn},
    io, mem,
    ops::Range,
    pin::pin,
    task::Poll,
};

use tokio::time::timeout_at;

use super::{
    admission::Ticket,
    end::{ClientFault, End, LimitReached, Side, is_truncation},
    facts::FrameObserver,
    relay::Relay,
};
use crate::{
    runtime::scratch,
    stream::Stream,
    telemetry::Direction,
    wire::{
        frame::{self, First, FrameError, MAX_BEFORE_LOGIN},
        message::{kind, stamp_client_address},
    },
};

/// How many bytes are collected while the first frame is not complete. This has room for keep-alives before it and the
/// beginning of a second frame after it.
const FIRST_BYTES: usize = 2 * MAX_BEFORE_LOGIN as usize;

/// Collects the first frame and opens a link to a server that has it. The bytes that client and server sent in the
/// meantime are kept in the two directions of `relay`. If there is an `End`, `relay` has it.
pub(super) async fn open(relay: &mut Relay) {
    match connect(relay).await {
        Ok(ClientRead::Open) => (),
        Ok(ClientRead::Ended(read)) => relay.client_ended(read),
        // No server has it, so only the client has to get its last bytes.
        Err(end) if relay.link.is_none() => relay.end_at_once(end),
        Err(end) => relay.end(end),
    }
}

/// What a read from the client has shown while the link was opened.
enum ClientRead {
    /// The client is there.
    Open,
    /// It has closed, or its stream has failed.
    Ended(io::Result<()>),
}

async fn connect(relay: &mut Relay) -> Result<ClientRead, End> {
    let Relay { context, ticket, via, client, link: opened, to_community, to_client, facts, .. } = relay;
    let first = mem::take(&mut to_community.kept);
    let deadline = via.accepted + context.settings.load().login_timeout;
    let (mut bytes, handshake) = {
        let collecting = pin!(timeout_at(deadline.into(), collect_handshake(client, first, facts.limit(), ticket)));
        unless_ordered(ticket, collecting).await?.map_err(|_| End::Client(ClientFault::LoginTimeout))??
    };
    // A client that has sent nothing but its Handshake waits for the answer.
    let waits = bytes[handshake.end..].iter().all(|&byte| frame::is_keep_alive(byte));
    let was_forwarded = stamp_client_address(&mut bytes[handshake], via.client.ip());
    let observer = FrameObserver { ticket, telemetry: &context.telemetry, accepted: via.accepted };
    to_community.take(Direction::ToCommunity, &mut bytes, facts, observer).map_err(client_frame)?;
    ticket.holds(bytes.len());
    let mut read = None;
    let link = {
        // One read, and no other until there is a link.
        let more = pin!(async {
            if waits {
                let most = ticket.may_read();
                let reading = poll_fn(|cx| scratch::poll_read_some(client, cx, most, |bytes, _| bytes.to_vec()));
                read = Some(reading.await);
            }
        });
        let community = &context.community;
        let linking = if was_forwarded {
            community.connect_forwarded(via.client, &bytes, more)
        } else {
            community.connect(via.client, &bytes, more)
        };
        unless_ordered(ticket, linking).await?
    };
    let (link, mut answer) = link.map_err(End::NoLink)?;
    ticket.is_on(link.lease.server_number());
    *opened = Some(link);
    let answered = to_client.take(Direction::ToClient, &mut answer, facts, observer);
    to_client.kept = answer;
    answered.map_err(|error| End::invalid_frame(Side::Community, error))?;
    let client = match read {
        None => ClientRead::Open,
        Some(Ok(Some(mut more))) => {
            let taken = to_community.take(Direction::ToCommunity, &mut more, facts, observer);
            to_community.kept = more;
            taken.map_err(client_frame)?;
            ClientRead::Open
        }
        Some(Err(error)) if !is_truncation(&error) => ClientRead::Ended(Err(error)),
        Some(Ok(None) | Err(_)) => ClientRead::Ended(Ok(())),
    };
    Ok(client)
}

/// Reads until the first frame is complete. Returns all bytes that were read, and where in them the frame is.
async fn collect_handshake(
    client: &mut Stream,
    mut bytes: Vec<u8>,
    limit: u32,
    ticket: &Ticket,
) -> Result<(Vec<u8>, Range<usize>), End> {
    loop {
        match frame::first(&bytes, limit).map_err(client_frame)? {
            First::Whole { head, start, end } if head.kind == kind::HANDSHAKE && head.channel == 0 => {
                return Ok((bytes, start..end));
            }
            First::Whole { head, .. } => return Err(End::Client(ClientFault::NotAHandshake(head.kind))),
            // Most of it are keep-alives: a frame is at most half as long.
            First::Partial if bytes.len() >= FIRST_BYTES => {
                return Err(client_frame(FrameError::TooShort { length: 0 }));
            }
            First::Partial if !ticket.may_hold(bytes.len()) => return Err(End::Limit(LimitReached::HeldBytes)),
            First::Partial => ticket.holds(bytes.len()),
        }
        match poll_fn(|cx| scratch::poll_read(client, cx, |read, _| bytes.extend_from_slice(read))).await {
            Ok(Some(())) => (),
            Ok(None) => return Err(End::Client(ClientFault::NoHandshake)),
            Err(error) if is_truncation(&error) => return Err(End::Client(ClientFault::NoHandshake)),
            Err(error) => return Err(End::broken(Side::Client, error)),
        }
    }
}

fn client_frame(error: FrameError) -> End {
    End::invalid_frame(Side::Client, error)
}

/// The result of `work`, unless the session gets an order before.
async fn unless_ordered<T>(ticket: &Ticket, mut work: impl Future<Output = T> + Unpin) -> Result<T, End> {
    poll_fn(|cx| match ticket.entry.poll_order(cx) {
        Some(order) => Poll::Ready(Err(End::Ordered(order))),
        None => pin!(&mut work).poll(cx).map(Ok),
    })
    .await
}
