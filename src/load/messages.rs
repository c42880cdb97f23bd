//! The messages that simulated clients send: log-in, a chat with `echo`, texts that carry a number.

use crate::wire::{
    frame,
    message::{Reader, Writer, kind},
};

/// The user that sends every message back.
const ECHO: &[u8] = b"echo";
/// The type of client in a Login.
const LOGIN_TYPE: u16 = 0x1003;
/// The service of a chat, in a CreateCnl.
const INSTANT_MESSAGES: u32 = 0x1000;
/// The type of an instant message on a channel.
const TEXT: u16 = 0x0064;
/// The one channel that a client opens.
const CHANNEL: u32 = 1;

/// A whole Login frame.
pub(super) fn login(name: &str, password: &[u8]) -> Vec<u8> {
    let mut body = Writer::new();
    body.u16(LOGIN_TYPE).string(name.as_bytes()).opaque(password).u16(0).u16(0);
    frame::build(kind::LOGIN, 0, &body.0)
}

/// A whole CreateCnl frame that opens a chat with `echo`.
pub(super) fn create_chat() -> Vec<u8> {
    let mut body = Writer::new();
    body.u32(0).u32(CHANNEL).string(ECHO).string(b"");
    body.u32(INSTANT_MESSAGES).u32(INSTANT_MESSAGES).u32(3).u32(0).opaque(&[0, 0, 0, 1, 0, 0, 0, 1]);
    body.u8(0).u16(0).opaque(b"");
    frame::build(kind::CREATE_CNL, 0, &body.0)
}

/// The body of a SendOnCnl with `data`.
pub(super) fn chat_body(data: &[u8]) -> Vec<u8> {
    let mut body = Writer::new();
    body.u16(TEXT).opaque(data);
    body.0
}

/// The body of a SendOnCnl with the instant message `text`.
pub(super) fn text_body(text: &[u8]) -> Vec<u8> {
    let mut data = Writer::new();
    data.u32(1).string(text);
    chat_body(&data.0)
}

/// A whole SendOnCnl frame on the chat's channel.
pub(super) fn send(body: &[u8]) -> Vec<u8> {
    frame::build(kind::SEND_ON_CNL, CHANNEL, body)
}

/// A text of `size` bytes that begins with its number, as in `1f abcd...`. A text whose number alone is
/// longer than `size` is as long as the number.
pub(super) fn numbered_text(number: u64, size: usize) -> Vec<u8> {
    let mut text = format!("{number:x} ").into_bytes();
    let filler = (number..).map(|i| b'a' + u8::try_from(i * 7 % 26).unwrap_or_default());
    text.extend(filler.take(size.saturating_sub(text.len())));
    text
}

/// The number at the beginning of the text in the body of a SendOnCnl; `None` if there is none.
pub(super) fn text_number(body: &[u8]) -> Option<u64> {
    let mut reader = Reader(body);
    reader.u16()?;
    let mut data = Reader(reader.opaque()?);
    data.u32()?;
    let text = std::str::from_utf8(data.string()?).ok()?;
    u64::from_str_radix(text.split(' ').next()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_its_size_and_its_number() {
        for (number, size) in [(0, 10), (0x1F, 80), (0xABCD, 20_000)] {
            let text = numbered_text(number, size);
            assert_eq!(text.len(), size);
            assert_eq!(text_number(&text_body(&text)), Some(number));
        }
        assert_eq!(numbered_text(0x1F, 1), b"1f ");
        assert_eq!(text_number(&chat_body(b"other data")), None);
    }
}
