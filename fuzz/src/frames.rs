//! Frames: in any fragmentation, the scanner finds the same heads and the same error as a plain reader, and the same
//! bytes are relayed.

use sametime_mux::wire::{
    frame::{self, First, FrameError, HEADER, Head, LENGTH, Relayable, Scanner, first, is_keep_alive},
    message::{self, Reader},
};

use super::Choices;

/// The offset and the head of a frame.
type Found = (usize, Head);

/// Reads a whole stream. Returns its frames, the error with the offset of its frame, whether the stream ends where a
/// frame ends, and how many bytes are in front of a frame that is invalid or whose length is not whole.
fn read_whole(bytes: &[u8], limit: u32) -> (Vec<Found>, Option<(usize, FrameError)>, bool, usize) {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if is_keep_alive(bytes[at]) {
            at += 1;
            continue;
        }
        let mut reader = Reader(&bytes[at..]);
        let Some(length) = reader.u32() else { return (found, None, false, at) };
        if (length as usize) < HEADER {
            return (found, Some((at, FrameError::TooShort { length })), false, at);
        }
        if length > limit {
            return (found, Some((at, FrameError::TooLong { length, limit })), false, at);
        }
        let (Some(kind), Some(options), Some(channel)) = (reader.u16(), reader.u16(), reader.u32()) else {
            return (found, None, false, bytes.len());
        };
        found.push((at, Head { length, kind, options, channel }));
        at += LENGTH + length as usize;
    }
    (found, None, at == bytes.len(), bytes.len())
}

/// The first bytes choose the limit and the fragments; the rest is the stream.
pub fn check(input: &[u8]) {
    let mut choices = Choices(input);
    let limit = [16, 300, 65_536, 1 << 20][choices.below(4)];
    let pieces: Vec<usize> = (0..4).map(|_| 1 + choices.below(40)).collect();
    let stream = choices.0;
    let (found, fault, at_boundary, relayable) = read_whole(stream, limit);

    let (mut scanner, mut seen, mut at, mut failed) = (Scanner::new(), Vec::new(), 0, None);
    let mut relayed = Vec::new();
    for piece in pieces.iter().cycle() {
        if at == stream.len() {
            break;
        }
        let piece = &stream[at..][..(*piece).min(stream.len() - at)];
        let held_back = scanner.held_back();
        let scanned = scanner.scan(piece, limit, |head| seen.push(head));
        let now = Relayable::new(held_back, piece, scanned, &scanner);
        relayed.extend_from_slice(now.before.as_ref());
        relayed.extend_from_slice(now.bytes);
        if let Err((before, fault)) = scanned {
            failed = Some((at, before, fault));
            break;
        }
        at += piece.len();
    }
    assert_eq!(relayed, stream[..relayable]);
    assert_eq!(seen, found.iter().map(|(_, head)| *head).collect::<Vec<_>>());
    match (fault, failed) {
        (None, None) => assert_eq!(scanner.at_boundary(), at_boundary),
        (Some((place, fault)), Some((piece, before, seen))) => {
            assert_eq!(seen, fault);
            // A frame that begins in an earlier piece has no bytes in front of it in this one.
            assert_eq!(before, place.saturating_sub(piece));
        }
        (expected, seen) => panic!("{expected:?}, but {seen:?}"),
    }

    match (first(stream, limit), found.first(), fault) {
        (Ok(First::Whole { head, start, end }), Some(found), _) => {
            assert_eq!((start, head), *found);
            assert_eq!(end, start + LENGTH + head.length as usize);
            check_stamp(&stream[start..end]);
        }
        (Ok(First::Partial), found, fault) => {
            let whole = found.is_some_and(|(at, head)| at + LENGTH + head.length as usize <= stream.len());
            assert!(!whole && (found.is_some() || fault.is_none()));
        }
        (Err(seen), None, Some((_, fault))) => assert_eq!(seen, fault),
        unexpected => panic!("{unexpected:?}"),
    }
}

/// Writing the client's address into a frame changes only that field.
fn check_stamp(frame: &[u8]) {
    let mut stamped = frame.to_vec();
    message::stamp_client_address(&mut stamped, [192, 0, 2, 7].into());
    assert_eq!(stamped.len(), frame.len());
    let field = 20..24;
    for (at, (now, before)) in stamped.iter().zip(frame).enumerate() {
        assert!(field.contains(&at) || now == before, "byte {at}");
    }
    // The frame still has the same head.
    assert_eq!(first(&stamped, u32::MAX), first(frame, u32::MAX));
    let _ = frame::build(0, 0, frame);
}
