//! The HTTP tunnel, as far as bytes go: URL and bodies of its requests, and the cryptography of its
//! acknowledgements. What a session does with them is `ingress::tunnel`'s.

pub mod cipher;
pub mod envelope;
