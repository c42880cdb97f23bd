//! A tunnel client that behaves like the recorded ones: it makes the bodies of requests and reads those of
//! responses.

use sametime_mux::{
    ingress::tunnel::Token,
    wire::{
        message::{Reader, Writer},
        tunnel::{
            cipher::{BLOCK, Cipher, FIRST_IV, agree_with},
            envelope::{self, TunnelKind},
            name::SessionName,
        },
    },
};

/// The client's Diffie-Hellman secret. It is short because the calculation is slow and nothing is secret here.
pub const SECRET: [u8; 2] = [3, 9];
/// The virtual connection that a hybrid client opens.
pub const CONNECTION: u32 = 1;

/// The client's public Diffie-Hellman value.
pub fn public() -> [u8; 64] {
    agree_with(&[3], &SECRET).expect("legal").public
}

/// One client whose session is open.
pub struct Client {
    kind: TunnelKind,
    version: u32,
    cipher: Cipher,
    token: Token,
    acknowledgement_iv: [u8; BLOCK],
    acknowledgement: Option<[u8; BLOCK]>,
    sent_iv: [u8; BLOCK],
    received_iv: [u8; BLOCK],
    /// The bytes of the Community that have arrived so far.
    pub received: Vec<u8>,
}

impl Client {
    /// A client whose first response carried `token`.
    pub fn new(kind: TunnelKind, version: u32, cipher: Cipher, token: Token) -> Self {
        Self {
            kind,
            version,
            cipher,
            token,
            acknowledgement_iv: FIRST_IV,
            acknowledgement: None,
            sent_iv: FIRST_IV,
            received_iv: FIRST_IV,
            received: Vec::new(),
        }
    }

    /// The body of the first request.
    pub fn opening(kind: TunnelKind) -> Vec<u8> {
        let mut out = Writer::new();
        out.u32(0).u32(1).opaque(&public());
        if kind == TunnelKind::Hybrid {
            let mut open = Writer::new();
            open.u8(b'S').u32(CONNECTION).u8(b'C');
            out.raw(&envelope::record(0, &open.0));
        }
        out.0
    }

    /// Reads the first response. Returns the client and the name of its session.
    pub fn opened(kind: TunnelKind, body: &[u8]) -> (Self, SessionName) {
        let mut reader = Reader(body);
        assert_eq!((reader.u32(), reader.string()), (Some(0), Some(&b""[..])));
        let version = reader.u32().expect("a version");
        let name = std::str::from_utf8(reader.string().expect("a name")).ok().and_then(SessionName::parse);
        let name = name.expect("a legal name");
        let public = reader.opaque().expect("a value");
        let token = reader.opaque().expect("a token").try_into().expect("five bytes");
        let cipher = agree_with(public, &SECRET).expect("legal").cipher;
        (Self::new(kind, version, cipher, token), name)
    }

    /// The body of a request with `data`. Its acknowledgement is that of the request before, unless a response was
    /// received since then.
    pub fn request(&mut self, data: &[u8]) -> Vec<u8> {
        let acknowledgement = *self.acknowledgement.get_or_insert_with(|| {
            let secret = self.cipher.encrypt(&mut self.acknowledgement_iv, &self.token);
            secret.try_into().expect("one block")
        });
        let clear = if self.kind == TunnelKind::Hybrid { envelope::record(CONNECTION, data) } else { data.to_vec() };
        let payload =
            if self.version == 0 || clear.is_empty() { clear } else { self.cipher.encrypt(&mut self.sent_iv, &clear) };
        let mut out = Writer::new();
        out.u32(0).opaque(&acknowledgement).raw(&payload);
        out.0
    }

    /// Reads a response. Returns whether it carried payload.
    pub fn receive(&mut self, body: &[u8]) -> bool {
        let mut reader = Reader(body);
        self.token = reader.opaque().and_then(|t| t.try_into().ok()).expect("a token");
        let padding = reader.u8().expect("padding");
        reader.bytes(padding.into()).expect("padding");
        self.acknowledgement = None;
        if reader.0.is_empty() {
            return false;
        }
        let clear = if self.version == 0 {
            reader.0.to_vec()
        } else {
            self.cipher.decrypt(&mut self.received_iv, reader.0).expect("decrypts")
        };
        match self.kind {
            TunnelKind::Polling => self.received.extend(clear),
            TunnelKind::Hybrid => envelope::each_record(&clear, |on, data| {
                assert_eq!(on, CONNECTION);
                self.received.extend_from_slice(data);
            })
            .expect("records"),
        }
        true
    }
}

/// Whether the body of a response carries payload.
pub fn carries_payload(body: &[u8]) -> bool {
    let mut reader = Reader(body);
    let _token = reader.opaque().expect("a token");
    let padding = reader.u8().expect("padding");
    reader.bytes(padding.into()).expect("padding");
    !reader.0.is_empty()
}
