//! The strict form of HTTP/1: a plain reader of whole requests reads what passes in the same way.

use sametime_mux::ingress::http::framing::{Framing, WORD};

use super::Choices;

/// A request, as the plain reader returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method and the target.
    pub line: (String, String),
    /// The names, in lower case, and the values.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body, without the form of its chunks.
    pub body: Vec<u8>,
}

/// Takes a line from the front; `None` if there is no CR LF.
fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    Some(line)
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
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
        let is_about_length = ["content-length", "transfer-encoding"].contains(&name.as_str());
        if is_about_length && value.len() > WORD {
            return None;
        }
        headers.push((name, value.trim_ascii().to_vec()));
    }
}

/// Takes a request from the front of `bytes`; `None` if it is not complete, or not of the strict form.
pub fn request(bytes: &mut &[u8]) -> Option<Request> {
    let mut rest = *bytes;
    while let Some(after) = rest.strip_prefix(b"\r\n") {
        rest = after;
    }
    let first: Vec<&[u8]> = line(&mut rest)?.split(|&b| b == b' ').collect();
    let [method, target, version] = first[..] else { return None };
    let is_http_1_0 = match version {
        b"HTTP/1.0" => true,
        b"HTTP/1.1" => false,
        _ => return None,
    };
    if !is_token(method) || target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
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
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && !is_http_1_0 => loop {
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

/// The first byte chooses the fragments; the rest is the connection.
pub fn check(input: &[u8]) {
    let mut choices = Choices(input);
    let step = 1 + choices.below(40);
    let bytes = choices.0;
    let mut whole = Framing::default();
    let fault = whole.follow(bytes).err();
    assert!(fault.is_none_or(|(at, _)| at < bytes.len()));

    let mut rest = bytes;
    let mut requests = 0;
    while request(&mut rest).is_some() {
        requests += 1;
    }
    assert_eq!(whole.requests(), requests);
    if fault.is_none() {
        // Everything was read, or the last request is not complete.
        let between = rest.is_empty() || rest.iter().all(|b| b"\r\n".contains(b));
        assert!(!whole.at_boundary() || between, "{}", rest.escape_ascii());
    }

    let (mut framing, mut seen) = (Framing::default(), None);
    for (n, piece) in bytes.chunks(step).enumerate() {
        if let Err((at, fault)) = framing.follow(piece) {
            seen = Some((n * step + at, fault));
            break;
        }
    }
    assert_eq!((framing.requests(), seen), (whole.requests(), fault));
}
