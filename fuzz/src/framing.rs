//! The strict form of HTTP/1: a plain reader of complete requests reads what passes in the same way.

use sametime_mux::ingress::http::framing::{Framing, MAX_WORD};

use super::Choices;

/// A request, as the plain reader reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method and target.
    pub line: (String, String),
    /// Names, in lower case, and values.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body, without the lines of its chunks.
    pub body: Vec<u8>,
}

/// Takes a line from the front. `None`: there is no CR LF.
fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    Some(line)
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// Whether `target` has only characters that a target may have.
fn is_target(target: &[u8]) -> bool {
    let path = target.split(|&b| b == b'?').next().unwrap_or_default();
    let is_legal = |b: &u8| b.is_ascii_graphic() && !b"\"#<>".contains(b);
    !path.is_empty() && target.iter().all(is_legal) && !path.iter().any(|b| b"\\`".contains(b))
}

fn headers(rest: &mut &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let mut headers = Vec::new();
    loop {
        let line = line(rest)?;
        if line.is_empty() {
            return Some(headers);
        }
        let colon = line.iter().position(|&b| b == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if !is_token(name) || value.iter().any(|&b| b != b'\t' && (b < b' ' || b == 0x7F)) {
            return None;
        }
        let name = String::from_utf8_lossy(name).to_lowercase();
        let decides = ["content-length", "transfer-encoding"].contains(&name.as_str());
        if decides && value.len() > MAX_WORD {
            return None;
        }
        headers.push((name, value.trim_ascii().to_vec()));
    }
}

/// Takes a request from the front of bytes that are all there. `None`: it is incomplete, or does not have the strict
/// form.
pub fn request(bytes: &mut &[u8]) -> Option<Request> {
    let mut rest = *bytes;
    while let Some(after) = rest.strip_prefix(b"\r\n") {
        rest = after;
    }
    let first: Vec<&[u8]> = line(&mut rest)?.split(|&b| b == b' ').collect();
    let [method, target, version] = first[..] else { return None };
    let is_old = match version {
        b"HTTP/1.0" => true,
        b"HTTP/1.1" => false,
        _ => return None,
    };
    if !is_token(method) || !is_target(target) {
        return None;
    }
    let headers = headers(&mut rest)?;
    let of =
        |name: &str| headers.iter().filter(|(have, _)| have == name).map(|(_, value)| &value[..]).collect::<Vec<_>>();
    let mut body = Vec::new();
    match (&of("content-length")[..], &of("transfer-encoding")[..]) {
        ([], []) => (),
        ([length], []) => {
            if length.is_empty() || length.len() > 18 || !length.iter().all(u8::is_ascii_digit) {
                return None;
            }
            let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
            body = rest.get(..length)?.to_vec();
            rest = &rest[length..];
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && !is_old => loop {
            let line = line(&mut rest)?;
            let size = line.split(|&b| b == b';').next()?;
            let extension = &line[size.len()..];
            if size.is_empty() || size.len() > 8 || !size.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            if extension.len() > 257 || extension.iter().any(|&b| b != b'\t' && !(b' '..=b'~').contains(&b)) {
                return None;
            }
            let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
            if size == 0 {
                let trailers = self::headers(&mut rest)?;
                let lengths = ["content-length", "transfer-encoding", "host"];
                if trailers.iter().any(|(name, _)| lengths.contains(&name.as_str())) {
                    return None;
                }
                break;
            }
            body.extend_from_slice(rest.get(..size)?);
            rest = rest[size..].strip_prefix(b"\r\n")?;
        },
        _ => return None,
    }
    *bytes = rest;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(Request { line: (text(method), text(target)), headers, body })
}

/// The first byte chooses the length of the fragments. The rest is the connection's bytes.
pub fn check(input: &[u8]) {
    let mut choices = Choices(input);
    let step = 1 + choices.below(40);
    let bytes = choices.0;
    let mut whole = Framing::default();
    let error = whole.follow(bytes).err();
    assert!(error.is_none_or(|(at, _)| at < bytes.len()));

    let mut rest = bytes;
    let mut requests = 0;
    while request(&mut rest).is_some() {
        requests += 1;
    }
    assert_eq!(whole.requests(), requests);
    if error.is_none() {
        // All bytes were read, or the end of a request is not there yet.
        let between = rest.is_empty() || rest.iter().all(|b| b"\r\n".contains(b));
        assert!(!whole.at_boundary() || between, "{}", rest.escape_ascii());
    }

    let (mut framing, mut seen) = (Framing::default(), None);
    for (n, piece) in bytes.chunks(step).enumerate() {
        if let Err((at, error)) = framing.follow(piece) {
            seen = Some((n * step + at, error));
            break;
        }
    }
    assert_eq!((framing.requests(), seen), (whole.requests(), error));
}
