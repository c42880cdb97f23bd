//! The first bytes of a connection: the protocol is decided once, is the same in any fragmentation, and is decided
//! within a bounded number of bytes.

use sametime_mux::ingress::detect::{begin, detect};

/// The longest beginning that may be undecided: the longest PROXY header, and one byte of a TLS record.
const LONGEST: usize = 16 + 4096 + 1;

/// The first byte chooses whether a PROXY header is required; the rest is the connection.
pub fn check(input: &[u8]) {
    let Some((choice, bytes)) = input.split_first() else { return };
    let is_header_required = choice & 1 == 1;
    let whole = begin(bytes, is_header_required);
    assert!(!matches!(whole, Ok(None)) || bytes.len() <= LONGEST, "undecided after {} bytes", bytes.len());
    if let Ok(Some(found)) = &whole {
        assert!(found.header < bytes.len());
        assert!(is_header_required || (found.header == 0 && found.source.is_none()));
        assert_eq!(detect(&bytes[found.header..]), Some(found.protocol));
    }
    // More bytes do not change a decision.
    let step = 1 + bytes.len() / 64;
    for end in (0..bytes.len()).step_by(step) {
        match begin(&bytes[..end], is_header_required) {
            Ok(None) => (),
            Ok(found) => assert_eq!(Ok(found), whole, "after {end} bytes"),
            Err(_) => assert!(whole.is_err(), "after {end} bytes"),
        }
    }
}
