//! What kind of key a key or a certificate has, for the message about one that the TLS library can't use.

use x509_parser::public_key::PublicKey;

/// What to use instead.
pub(super) const USABLE: &str = "an RSA key of 2048 to 8192 bits, an EC key on P-256 (prime256v1) or P-384 (secp384r1), \
                                 or an Ed25519 key";

/// Object identifiers in DER, and what a key that contains them is. Those of curves come first, since keys on all curves
/// are EC keys.
const KINDS: [(&[u8], &str); 14] = [
    (b"\x06\x05\x2B\x81\x04\x00\x23", "an EC key on the curve P-521 (secp521r1)"),
    (b"\x06\x05\x2B\x81\x04\x00\x0A", "an EC key on the curve secp256k1"),
    (b"\x06\x05\x2B\x81\x04\x00\x21", "an EC key on the curve P-224 (secp224r1)"),
    (b"\x06\x08\x2A\x86\x48\xCE\x3D\x03\x01\x01", "an EC key on the curve P-192 (prime192v1)"),
    (b"\x06\x09\x2B\x24\x03\x03\x02\x08\x01\x01\x07", "an EC key on the curve brainpoolP256r1"),
    (b"\x06\x09\x2B\x24\x03\x03\x02\x08\x01\x01\x0B", "an EC key on the curve brainpoolP384r1"),
    (b"\x06\x09\x2B\x24\x03\x03\x02\x08\x01\x01\x0D", "an EC key on the curve brainpoolP512r1"),
    (b"\x06\x08\x2A\x81\x1C\xCF\x55\x01\x82\x2D", "an EC key on the curve SM2"),
    (b"\x06\x08\x2A\x86\x48\xCE\x3D\x03\x01\x07", "an EC key on the curve P-256 (prime256v1)"),
    (b"\x06\x05\x2B\x81\x04\x00\x22", "an EC key on the curve P-384 (secp384r1)"),
    (b"\x06\x07\x2A\x86\x48\xCE\x3D\x02\x01", "an EC key on a curve that is not named"),
    (b"\x06\x03\x2B\x65\x71", "an Ed448 key"),
    (b"\x06\x09\x2A\x86\x48\x86\xF7\x0D\x01\x01\x0A", "an RSA-PSS key"),
    (b"\x06\x07\x2A\x86\x48\xCE\x38\x04\x01", "a DSA key"),
];

/// The kind of a key in DER (PKCS#8, or SEC1), or else that of the certificate in DER that belongs to it.
pub(super) fn kind_of_key(key: &[u8], certificate: &[u8]) -> String {
    let by_key = KINDS.iter().find(|(identifier, _)| key.windows(identifier.len()).any(|part| part == *identifier));
    if let Some((_, kind)) = by_key {
        return (*kind).to_owned();
    }
    let parsed = x509_parser::parse_x509_certificate(certificate);
    match parsed.as_ref().ok().and_then(|(_, certificate)| certificate.public_key().parsed().ok()) {
        Some(PublicKey::RSA(key)) => format!("an RSA key of {} bits", key.key_size()),
        _ => "a key of an unknown kind".to_owned(),
    }
}
