//! What must not be guessed: serial numbers, secrets, ids. All of it is the operating system's randomness.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// Bytes of a serial number: 127 random bits, where 64 are asked of public CAs. At most 20 are allowed (RFC 5280, section
/// 4.1.2.2).
const SERIAL_BYTES: usize = 16;

/// So many random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| "the system gives no randomness".to_owned())?;
    Ok(bytes)
}

/// A serial number in hexadecimal. It is positive and has all its digits: the first byte is 0x40 to 0x7f.
pub(super) fn serial() -> Result<String, String> {
    let mut bytes = bytes::<SERIAL_BYTES>()?;
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    Ok(hexadecimal(&bytes))
}

/// The id of a token.
pub(super) fn token_id() -> Result<String, String> {
    bytes::<8>().map(|bytes| hexadecimal(&bytes))
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
