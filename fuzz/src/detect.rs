//! Identification of a connection: decided once, the same in any fragmentation, and after a bounded number of bytes.

use sametime_mux::ingress::{
    detect::{Protocol, detect},
    identify::{Identification, Identified, IdentifyError, ProxyHeader},
};

/// The most bytes that may leave a connection undecided: a PROXY header of the greatest length, and one byte of a TLS
/// record.
const LONGEST: usize = 16 + 4096 + 1;

/// The first byte chooses whether a PROXY header is due.
pub fn check(input: &[u8]) {
    let Some((choice, bytes)) = input.split_first() else { return };
    let due = choice & 1 == 1;
    let mut machine = Identification::new(due);
    let whole = machine.receive(bytes);
    same_in_pieces(&mut Identification::new(due), bytes, &whole);
    match whole {
        Ok(None) => assert!(bytes.len() <= LONGEST, "undecided after {} bytes", bytes.len()),
        Ok(Some(outer)) => {
            assert_eq!(matches!(outer.proxy_header, ProxyHeader::Read { .. }), due);
            assert!(!outer.first.is_empty() && bytes.ends_with(&outer.first));
            assert!(due || outer.first == bytes);
            assert_eq!(detect(&outer.first), Some(outer.protocol));
            if outer.protocol == Protocol::Tls {
                check_inside(&mut machine, due, bytes);
            }
        }
        Err(_) => (),
    }
}

/// The same bytes as those inside TLS.
fn check_inside(machine: &mut Identification, due: bool, bytes: &[u8]) {
    let whole = machine.receive(bytes);
    let mut again = Identification::new(due);
    let outer = again.receive(bytes);
    assert!(matches!(outer, Ok(Some(Identified { protocol: Protocol::Tls, .. }))));
    same_in_pieces(&mut again, bytes, &whole);
    let Ok(inner) = whole else { panic!("{whole:?}: inside TLS, no PROXY header is expected") };
    assert!(inner.is_some() || bytes.len() <= 1);
    if let Some(inner) = inner {
        assert_eq!((inner.proxy_header, &inner.first[..]), (ProxyHeader::Absent, bytes));
        assert_ne!(inner.protocol, Protocol::Tls);
    }
}

/// Feeds `bytes` in pieces: the machine must decide as it did for all of them.
fn same_in_pieces(machine: &mut Identification, bytes: &[u8], whole: &Result<Option<Identified>, IdentifyError>) {
    let mut decided = Ok(None);
    for piece in bytes.chunks(1 + bytes.len() / 64) {
        decided = machine.receive(piece);
        if decided != Ok(None) {
            break;
        }
    }
    match (&decided, whole) {
        (Ok(Some(decided)), Ok(Some(whole))) => {
            assert_eq!((decided.protocol, decided.proxy_header), (whole.protocol, whole.proxy_header));
            // The pieces that follow are still to be received.
            assert!(!decided.first.is_empty() && whole.first.starts_with(&decided.first));
        }
        (decided, whole) => assert_eq!(decided, whole),
    }
}
