//! The tunnel's envelope: what is read and written again has the same bytes.

use sametime_mux::wire::{
    message::{Reader, Writer},
    tunnel::{
        cipher::{BLOCK, Cipher, FIRST_IV, agree_with},
        envelope::{self, Address, TunnelKind},
        name::{SessionName, UrlName},
    },
};

use super::{Choices, streaming::check_post};

/// The first byte chooses how the rest is read; a body of the streaming tunnel begins with its own.
pub fn check(input: &[u8]) {
    check_post(input);
    let mut choices = Choices(input);
    match choices.below(6) {
        0 => path(&String::from_utf8_lossy(choices.0)),
        1 => opening(TunnelKind::Polling, choices.0),
        2 => opening(TunnelKind::Hybrid, choices.0),
        3 => later(choices.0),
        4 => response(&mut choices),
        _ => cipher(&mut choices),
    }
}

fn path(path: &str) {
    let tunnels = path.split('/').any(|part| part.eq_ignore_ascii_case("CommunityCBR"));
    match envelope::address(path) {
        Address::Other => assert!(!tunnels),
        Address::Tunnel(kind, name) => {
            let number = if kind == TunnelKind::Polling { "35" } else { "39" };
            assert!(tunnels);
            let text = match name {
                UrlName::Empty => String::new(),
                UrlName::Session(name) => String::from_utf8(name.digits().to_vec()).expect("digits"),
                UrlName::NotAName { length } => {
                    assert!((1..=64).contains(&length));
                    "-".repeat(length.into())
                }
            };
            let plain = format!("/CommunityCBR/CC.{number}.{text}/");
            assert_eq!(envelope::address(&plain), Address::Tunnel(kind, name));
        }
        Address::Probe | Address::Malformed => assert!(tunnels),
    }
}

fn opening(kind: TunnelKind, body: &[u8]) {
    let Ok(opening) = envelope::opening(kind, body) else { return };
    assert!(opening.public.len() <= 65);
    assert_eq!(opening.connection != 0, kind == TunnelKind::Hybrid);
    let mut again = Writer::new();
    again.u32(0).u32(1).opaque(opening.public);
    assert!(body.starts_with(&again.0));
    if kind == TunnelKind::Hybrid {
        records(&body[again.0.len()..]);
    }
    // Every public value of a client gives a key or is refused.
    if let Some(agreement) = agree_with(opening.public, &[5; 4]) {
        assert_eq!(agreement.cipher.encrypt(&mut FIRST_IV.clone(), b"token").len(), BLOCK);
    }
}

fn later(body: &[u8]) {
    let Ok(later) = envelope::later(body) else { return };
    let mut again = Writer::new();
    again.u32(0).opaque(later.acknowledgement).raw(later.payload);
    assert_eq!(again.0, body);
    records(later.payload);
}

fn records(payload: &[u8]) {
    let mut again = Writer::new();
    let read = envelope::each_record(payload, |on, data| {
        again.u32(on).u8(b'M').opaque(data);
    });
    // The whole records before a broken one are reported.
    assert!(payload.starts_with(&again.0));
    assert_eq!(read.is_ok(), again.0.len() == payload.len());
}

/// A client reads from a response what was written into it.
fn response(choices: &mut Choices<'_>) {
    let n = choices.below(20);
    let (token, payload) = (choices.bytes(n), choices.0);
    let body = envelope::response(token, payload);
    let mut reader = Reader(&body);
    assert_eq!(reader.opaque(), Some(token));
    assert_eq!(reader.u8(), Some(0));
    assert_eq!(reader.0, payload);
    let record = envelope::record(7, payload);
    let mut seen = Vec::new();
    envelope::each_record(&record, |on, data| seen.push((on, data.to_vec()))).expect("a record of our own");
    assert_eq!(seen, if payload.is_empty() { vec![] } else { vec![(7, payload.to_vec())] });
    let name = SessionName::parse("0123456789abcdef0123456789abcdef").expect("a name");
    let body = envelope::opened(1, &name, payload, token);
    let mut reader = Reader(&body);
    assert_eq!((reader.u32(), reader.string(), reader.u32()), (Some(0), Some(&b""[..]), Some(1)));
    assert_eq!((reader.string(), reader.opaque()), (Some(&name.digits()[..]), Some(payload)));
    assert_eq!((reader.opaque(), reader.u8(), reader.0), (Some(token), Some(0), &b""[..]));
}

/// Encryption and decryption give the same bytes. Data that cannot be decrypted does not change the cipher's state.
fn cipher(choices: &mut Choices<'_>) {
    let mut key = [0; 16];
    for byte in &mut key {
        *byte = choices.byte();
    }
    let cipher = Cipher::new(&key);
    let (mut ours, mut theirs) = (FIRST_IV, FIRST_IV);
    for plain in choices.0.chunks(50) {
        let secret = cipher.encrypt(&mut ours, plain);
        assert_eq!(secret.len(), plain.len() + BLOCK - plain.len() % BLOCK);
        assert_eq!(cipher.decrypt(&mut theirs, &secret).expect("our own"), plain);
        assert_eq!(ours, theirs);
    }
    let before = ours;
    match cipher.decrypt(&mut ours, choices.0) {
        None => assert_eq!(ours, before),
        Some(plain) => assert_eq!(cipher.encrypt(&mut { before }, &plain), choices.0),
    }
}
