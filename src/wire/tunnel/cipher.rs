//! The cryptography of a tunnel session's acknowledgements: Diffie-Hellman, and RC2 in CBC mode.
//!
//! It is too weak to keep anything secret today. It is needed because a client proves with it which response it has
//! received, and because old clients require it for the payload (tunnel version 1). Prime, generator, key and initial
//! vector are those of a real Java client; the recordings in `tests/fixtures/transcripts` have secrets and keys to
//! check against.

use std::sync::LazyLock;

use num_bigint::BigUint;
use rc2::{
    Rc2,
    cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt},
};

/// Bytes of an RC2 block.
pub const BLOCK: usize = 8;
/// Bytes of a Diffie-Hellman public value. A client may write one zero byte before it.
pub const PUBLIC: usize = 64;
/// The initial vector of every chain.
pub const FIRST_IV: [u8; BLOCK] = [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF];

/// The effective key length that clients use, in bits. The key itself has 128 bits.
const EFFECTIVE_BITS: usize = 1024;
const PRIME: &[u8] = b"CF84AFCE86DDFA527F136D10357528EEFBA0AFEF808F29174E3B6A9E970001717C8F106C41C161A6CE91057B34DA62CBB87BFDC1B35C1B910FEA72249D566B9F";
const GENERATOR: u32 = 3;
/// Bytes of this side's exponent: half of the prime's, which is as strong as the prime and twice as fast.
pub const SECRET: usize = 32;

static MODULUS: LazyLock<BigUint> = LazyLock::new(|| BigUint::parse_bytes(PRIME, 16).expect("a constant in hex"));

/// What both sides of a session have agreed on.
pub struct Agreement {
    /// This side's public value, for the client.
    pub public: [u8; PUBLIC],
    /// The session's cipher.
    pub cipher: Cipher,
}

/// The public value of a secret. The other side of a session receives it.
pub fn public_of(secret: &[u8]) -> [u8; PUBLIC] {
    padded(&BigUint::from(GENERATOR).modpow(&BigUint::from_bytes_be(secret), &MODULUS))
}

/// Agrees on a key with a client that sent `public`; `secret` is this side's secret.
///
/// Returns `None` for a value that no honest client sends: it is too long, or it is one of the values (0, 1, and from
/// prime - 1 on) with which anybody knows the key.
pub fn agree_with(public: &[u8], secret: &[u8]) -> Option<Agreement> {
    if public.is_empty() || public.len() > PUBLIC + 1 {
        return None;
    }
    let (theirs, one) = (BigUint::from_bytes_be(public), BigUint::from(1u32));
    if theirs <= one || theirs >= &*MODULUS - &one {
        return None;
    }
    let shared = padded(&theirs.modpow(&BigUint::from_bytes_be(secret), &MODULUS));
    Some(Agreement { public: public_of(secret), cipher: Cipher::new(&shared[PUBLIC - 16..]) })
}

/// As [`agree_with`], with a random secret.
///
/// # Errors
/// When the system has no random numbers.
pub fn agree(public: &[u8]) -> Result<Option<Agreement>, getrandom::Error> {
    let mut secret = [0; SECRET];
    getrandom::fill(&mut secret)?;
    Ok(agree_with(public, &secret))
}

fn padded(number: &BigUint) -> [u8; PUBLIC] {
    let (bytes, mut out) = (number.to_bytes_be(), [0; PUBLIC]);
    out[PUBLIC - bytes.len()..].copy_from_slice(&bytes);
    out
}

/// RC2 with the key of a session. A chain continues over many calls, so the caller keeps the vector of each chain.
pub struct Cipher(Box<Rc2>);

impl Cipher {
    /// A cipher with `key`, which has 16 bytes in a session.
    pub fn new(key: &[u8]) -> Self {
        Self(Box::new(Rc2::new_with_eff_key_len(key, EFFECTIVE_BITS)))
    }

    /// Pads and encrypts `plain`, and sets `iv` to the last block of the ciphertext.
    pub fn encrypt(&self, iv: &mut [u8; BLOCK], plain: &[u8]) -> Vec<u8> {
        let pad = BLOCK - plain.len() % BLOCK;
        let mut out = Vec::with_capacity(plain.len() + pad);
        out.extend_from_slice(plain);
        // The padding has at most 8 bytes.
        #[allow(clippy::cast_possible_truncation)]
        out.resize(plain.len() + pad, pad as u8);
        for block in out.chunks_exact_mut(BLOCK) {
            for (byte, mask) in block.iter_mut().zip(&*iv) {
                *byte ^= mask;
            }
            let mut one = Array::from(*iv);
            one.copy_from_slice(block);
            self.0.encrypt_block(&mut one);
            block.copy_from_slice(&one);
            iv.copy_from_slice(&one);
        }
        out
    }

    /// Decrypts what [`Cipher::encrypt`] made, and sets `iv` to the last block of the ciphertext. `None`, with `iv`
    /// unchanged, when the length or the padding is wrong.
    pub fn decrypt(&self, iv: &mut [u8; BLOCK], secret: &[u8]) -> Option<Vec<u8>> {
        let next = *secret.last_chunk::<BLOCK>()?;
        if !secret.len().is_multiple_of(BLOCK) {
            return None;
        }
        let mut out = secret.to_vec();
        for block in out.chunks_exact_mut(BLOCK) {
            let mut one = Array::from(next);
            one.copy_from_slice(block);
            self.0.decrypt_block(&mut one);
            block.copy_from_slice(&one);
        }
        // Each block was combined with the ciphertext block before it.
        for (i, byte) in out.iter_mut().enumerate() {
            *byte ^= if i < BLOCK { iv[i] } else { secret[i - BLOCK] };
        }
        let pad = usize::from(*out.last()?);
        if pad == 0 || pad > BLOCK || out[out.len() - pad..].iter().any(|&b| usize::from(b) != pad) {
            return None;
        }
        out.truncate(out.len() - pad);
        *iv = next;
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex")).collect()
    }

    #[test]
    fn a_recorded_client_agrees() {
        // tests/fixtures/transcripts/polling-login.jsonl, first request and response.
        let public = hex(
            "0db5bea8e638835535f3c06c69653be8f126e72e47418f89cd41a974e30d6882250a19f70c20e9d3f8b18a987ae7c47d9a2f5220beae8c08eeec406ffe0035a0",
        );
        let secret = hex(
            "017253c3d16380228406ed474d79efe8a596ca37f3d633d12b9f3263f8de9b2d0eb7c724eed88bc64a2d4d5c442c34eecb510951a1df955a01c928d6601b6c",
        );
        let agreement = agree_with(&public, &secret[..]).expect("a legal value");
        let mut iv = FIRST_IV;
        // The first two acknowledgements, of the tokens 7649524f31 and 10d4e6e03e.
        assert_eq!(agreement.cipher.encrypt(&mut iv, &hex("7649524f31")), hex("6caf97c3454fa185"));
        assert_eq!(agreement.cipher.encrypt(&mut iv, &hex("10d4e6e03e")), hex("b0a015a141299109"));
    }

    #[test]
    fn values_that_give_the_key_away_are_refused() {
        let secret = [7; SECRET];
        let minus_one = padded(&(&*MODULUS - BigUint::from(1u32)));
        for bad in [&[][..], &[0], &[1], &[0; PUBLIC], &minus_one, &padded(&MODULUS), &[1; PUBLIC + 2]] {
            assert!(agree_with(bad, &secret).is_none(), "{bad:?}");
        }
        let mut long = vec![0];
        long.extend([3; PUBLIC]);
        assert!(agree_with(&long, &secret).is_some(), "65 bytes with a leading zero");
        long.insert(0, 0);
        assert!(agree_with(&long, &secret).is_none(), "no client sends two zeros, and a long number costs much");
        let agreement = agree(&long[2..]).expect("random numbers").expect("a legal value");
        assert!(agreement.public != [0; PUBLIC]);
    }

    #[test]
    fn both_ends_come_to_the_same_key() {
        let ours = agree_with(&agree_with(&[3], &[9; 32]).expect("legal").public, &[5; 32]).expect("legal");
        let theirs = agree_with(&agree_with(&[3], &[5; 32]).expect("legal").public, &[9; 32]).expect("legal");
        let (mut a, mut b) = (FIRST_IV, FIRST_IV);
        for plain in [&b"token"[..], b"", b"12345678", &[7; 1000]] {
            let secret = ours.cipher.encrypt(&mut a, plain);
            assert_eq!(theirs.cipher.decrypt(&mut b, &secret).expect("decrypts"), plain);
        }
    }

    #[test]
    fn what_does_not_decrypt_leaves_the_chain_alone() {
        let cipher = Cipher::new(&[1; 16]);
        let mut iv = FIRST_IV;
        assert!(cipher.decrypt(&mut iv, &[1; 7]).is_none());
        assert!(cipher.decrypt(&mut iv, &[]).is_none());
        assert!(cipher.decrypt(&mut iv, &[0x5A; 16]).is_none());
        assert_eq!(iv, FIRST_IV);
    }
}
