//! First bytes: decided once, the same in any fragmentation, and soon.

use sametime_mux::ingress::detect::{begin, detect};

/// The longest beginning that may be undecided: a PROXY header of the greatest length, and one
/// byte of a TLS record.
const LONGEST: usize = 16 + 4096 + 1;

/// The first byte chooses whether a PROXY header is due.
pub fn check(input: &[u8]) {
    let Some((choice, bytes)) = input.split_first() else { return };
    let due = choice & 1 == 1;
    let whole = begin(bytes, due);
    assert!(!matches!(whole, Ok(None)) || bytes.len() <= LONGEST, "undecided after {} bytes", bytes.len());
    if let Ok(Some(begun)) = &whole {
        assert!(begun.header < bytes.len());
        assert!(due || (begun.header == 0 && begun.source.is_none()));
        assert_eq!(detect(&bytes[begun.header..]), Some(begun.protocol));
    }
    // What was decided by fewer bytes stays decided.
    let step = 1 + bytes.len() / 64;
    for end in (0..bytes.len()).step_by(step) {
        match begin(&bytes[..end], due) {
            Ok(None) => (),
            Ok(begun) => assert_eq!(Ok(begun), whole, "after {end} bytes"),
            Err(_) => assert!(whole.is_err(), "after {end} bytes"),
        }
    }
}
