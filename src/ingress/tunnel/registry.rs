//! Finds a session by its name.

use std::{collections::HashMap, fmt::Write, sync::Arc};

use parking_lot::Mutex;

use super::shared::Shared;

/// A session's name: 128 random bits, 32 hexadecimal digits in the URL.
pub(super) type Name = [u8; 16];

/// Maps with a lock each: requests of many clients find their sessions at once.
const SHARDS: usize = 16;

/// Every session that a client may still ask for.
#[derive(Default)]
pub(super) struct Registry {
    shards: [Mutex<HashMap<Name, Arc<Shared>>>; SHARDS],
}

/// A name that nobody can guess.
///
/// # Errors
/// When the system has no random numbers.
pub(super) fn fresh_name() -> Result<Name, getrandom::Error> {
    let mut name = Name::default();
    getrandom::fill(&mut name)?;
    Ok(name)
}

/// As it stands in the URL.
pub(super) fn to_text(name: &Name) -> String {
    name.iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads what [`to_text`] wrote.
pub(super) fn from_text(text: &str) -> Option<Name> {
    let mut name = Name::default();
    if text.len() != 2 * name.len() {
        return None;
    }
    for (byte, digits) in name.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        for digit in digits {
            *byte = *byte << 4 | u8::try_from(char::from(*digit).to_digit(16)?).ok()?;
        }
    }
    Some(name)
}

impl Registry {
    fn shard(&self, name: &Name) -> &Mutex<HashMap<Name, Arc<Shared>>> {
        &self.shards[usize::from(name[0]) % SHARDS]
    }

    pub(super) fn insert(&self, name: Name, session: Arc<Shared>) {
        self.shard(&name).lock().insert(name, session);
    }

    pub(super) fn get(&self, name: &Name) -> Option<Arc<Shared>> {
        self.shard(name).lock().get(name).cloned()
    }

    pub(super) fn remove(&self, name: &Name) {
        self.shard(name).lock().remove(name);
    }

    /// Forgets every session for which `over` is true.
    pub(super) fn sweep(&self, mut over: impl FnMut(&Shared) -> bool) {
        for shard in &self.shards {
            shard.lock().retain(|_, session| !over(session));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_nothing_else_is_one() {
        let name = fresh_name().expect("random");
        let text = to_text(&name);
        assert_eq!(text.len(), 32);
        assert_eq!(from_text(&text), Some(name));
        for wrong in ["", "é", &text[1..], &text.replace(|c: char| c.is_ascii_hexdigit(), "x"), &format!("{text}0")] {
            assert_eq!(from_text(wrong), None);
        }
    }
}
