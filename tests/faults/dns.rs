//! A name server that gives the same answer to every query: an address, an error, or nothing.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::Arc,
};

use parking_lot::Mutex;

#[derive(Debug, Clone, Copy)]
pub enum Answer {
    Address(Ipv4Addr),
    /// The error "server failure".
    #[allow(dead_code)]
    Failure,
    /// No response.
    #[allow(dead_code)]
    Silence,
}

pub struct Dns(pub Arc<Mutex<Answer>>);

impl Dns {
    /// Serves port 53 on loopback until the process ends.
    pub fn start(answer: Answer) -> Self {
        let (socket, this) = (UdpSocket::bind("127.0.0.1:53").unwrap(), Self(Arc::new(Mutex::new(answer))));
        let answer = Arc::clone(&this.0);
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((n, from)) = socket.recv_from(&mut query) {
                let now = *answer.lock();
                if let Some(response) = response(&query[..n], now) {
                    let _ = socket.send_to(&response, from);
                }
            }
        });
        this
    }

    pub fn set(&self, answer: Answer) {
        *self.0.lock() = answer;
    }
}

/// The response to a query (RFC 1035, section 4): header, the question, and one A record with TTL 0 if there is an
/// address.
fn response(query: &[u8], answer: Answer) -> Option<Vec<u8>> {
    let end = 12 + query.get(12..)?.iter().position(|&byte| byte == 0)? + 5;
    let (question, kind) = (query.get(12..end)?, query.get(end - 4..end - 2)?);
    let (code, address) = match answer {
        Answer::Silence => return None,
        Answer::Failure => (2, None),
        Answer::Address(address) => (0, (kind == [0, 1]).then_some(address)),
    };
    let records = u8::from(address.is_some());
    let mut out = [&query[..2], &[0x81, 0x80 | code, 0, 1, 0, records, 0, 0, 0, 0], question].concat();
    if let Some(address) = address {
        out.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        out.extend(address.octets());
    }
    Some(out)
}
