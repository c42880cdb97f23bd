//! The HTTP tunnel's codecs: the URL and the bodies of its requests and responses, and the cryptography of its
//! acknowledgements. `ingress::tunnel` decides what a session does with them.

pub mod cipher;
pub mod envelope;
pub mod name;
pub mod stream;
