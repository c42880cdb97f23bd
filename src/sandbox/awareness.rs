//! The bodies of messages on awareness channels: who is on line, and with which status.
//!
//! An entry is a marked block. It has the type, id and community of the user *as the client asked*; otherwise clients
//! ignore it.

use std::collections::HashMap;

use super::bodies::{User, send};
use crate::wire::message::{Reader, Writer};

/// Message types on the awareness channel.
pub(super) const ADD: u16 = 0x0068;
pub(super) const REMOVE: u16 = 0x0069;
const SNAPSHOT: u16 = 0x01F4;
const UPDATE: u16 = 0x01F5;
/// The type of an id that names a user. Ids of other types, as groups, are never on line.
const USER: u16 = 2;

/// Whom a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AskedId<'a> {
    pub(super) id_type: u16,
    pub(super) name: &'a [u8],
    pub(super) community: &'a [u8],
}

impl AskedId<'_> {
    pub(super) fn is_user(&self) -> bool {
        self.id_type == USER
    }

    /// The bytes that it holds.
    pub(super) fn size(&self) -> usize {
        self.name.len() + self.community.len()
    }

    /// Writes an entry; `user` is `None` while nobody with this id is on line.
    fn write_entry(&self, out: &mut Writer, user: Option<&User>) {
        out.marked(|out| {
            // No group, of which it would be a member.
            out.u16(self.id_type).string(self.name).string(self.community).string(b"").u8(user.is_some().into());
            if let Some(user) = user {
                out.string(self.name).raw(&user.status).string(&user.name);
            }
        });
    }
}

/// Whom a client watches on one channel: under each name the ids with this name, each a type and a community.
#[derive(Debug, Default)]
pub(super) struct WatchList(HashMap<Vec<u8>, Vec<(u16, Vec<u8>)>>);

impl WatchList {
    /// Adds an id. Returns whether it is new.
    pub(super) fn add(&mut self, id: AskedId<'_>) -> bool {
        let is_new = !self.of_name(id.name).any(|other| other == id);
        if is_new {
            let ids = self.0.entry(id.name.to_vec()).or_default();
            ids.push((id.id_type, id.community.to_vec()));
        }
        is_new
    }

    /// Removes an id. Returns whether it was there.
    pub(super) fn remove(&mut self, id: AskedId<'_>) -> bool {
        let Some(ids) = self.0.get_mut(id.name) else { return false };
        let before = ids.len();
        ids.retain(|(id_type, community)| (*id_type, community.as_slice()) != (id.id_type, id.community));
        let now = ids.len();
        if now == 0 {
            self.0.remove(id.name);
        }
        now < before
    }

    /// The ids with this name.
    pub(super) fn of_name<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = AskedId<'a>> {
        let ids = self.0.get(name).into_iter().flatten();
        ids.map(move |(id_type, community)| AskedId { id_type: *id_type, name, community })
    }

    /// All ids.
    pub(super) fn all(&self) -> impl Iterator<Item = AskedId<'_>> {
        self.0.keys().flat_map(|name| self.of_name(name))
    }
}

/// The ids in a list: `u32 count`, then for each `u16 type, String id, String community`. A list that is cut off ends at
/// the last whole id.
pub(super) fn ids(data: &[u8]) -> impl Iterator<Item = AskedId<'_>> {
    let mut reader = Reader(data);
    let count = reader.u32().unwrap_or_default();
    (0..count).map_while(move |_| {
        Some(AskedId { id_type: reader.u16()?, name: reader.string()?, community: reader.string()? })
    })
}

/// The body of a SendOnCnl that reports all of `asked`.
pub(super) fn snapshot(asked: &[(AskedId<'_>, Option<User>)]) -> Vec<u8> {
    let mut out = Writer::new();
    out.u32(u32::try_from(asked.len()).unwrap_or(u32::MAX));
    for (id, user) in asked {
        id.write_entry(&mut out, user.as_ref());
    }
    send(SNAPSHOT, &out.0)
}

/// The body of a SendOnCnl that reports a change of one user.
pub(super) fn update(id: AskedId<'_>, user: Option<&User>) -> Vec<u8> {
    let mut out = Writer::new();
    id.write_entry(&mut out, user);
    send(UPDATE, &out.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_offsets_in_the_whole_data_and_ids_are_returned_as_asked() {
        let asked = [
            AskedId { id_type: USER, name: b"ann", community: b"" },
            AskedId { id_type: 3, name: b"team", community: b"c" },
            AskedId { id_type: USER, name: b"bea", community: b"" },
        ];
        let bea = User::new(b"bea", b"bea/1", 0x1001, 0);
        let body = snapshot(&[(asked[0], None), (asked[1], None), (asked[2], Some(bea))]);
        let mut reader = Reader(&body);
        assert_eq!(reader.u16(), Some(0x01F4));
        let data = reader.opaque().expect("data");
        let mut reader = Reader(data);
        assert_eq!(reader.u32(), Some(3));
        for (n, id) in asked.iter().enumerate() {
            let mark = reader.u32().expect("a mark") as usize;
            assert_eq!(
                (reader.u16(), reader.string(), reader.string(), reader.string(), reader.u8()),
                (Some(id.id_type), Some(id.name), Some(id.community), Some(&b""[..]), Some(u8::from(n == 2)))
            );
            if n == 2 {
                let status = (reader.string(), reader.u16(), reader.u32(), reader.string(), reader.string());
                assert_eq!(
                    status,
                    (Some(&b"bea"[..]), Some(0x20), Some(0), Some(&b"I am active"[..]), Some(&b"bea"[..]))
                );
            }
            assert_eq!(mark, data.len() - reader.0.len(), "of entry {n}");
        }
        assert!(reader.0.is_empty());
    }

    #[test]
    fn a_watch_list_keeps_ids_apart_that_have_one_name() {
        let ann = AskedId { id_type: USER, name: b"ann", community: b"" };
        let (group, other) = (AskedId { id_type: 3, ..ann }, AskedId { community: b"c", ..ann });
        let mut list = WatchList::default();
        assert!(list.add(ann) && list.add(group) && list.add(other) && !list.add(ann));
        assert_eq!(list.of_name(b"ann").collect::<Vec<_>>(), [ann, group, other]);
        assert!(list.remove(ann) && !list.remove(ann) && list.remove(group));
        assert_eq!(list.all().collect::<Vec<_>>(), [other]);
        assert!(list.remove(other) && list.0.is_empty());
    }

    #[test]
    fn a_list_that_is_cut_off_ends_at_the_last_whole_id() {
        let mut list = Writer::new();
        list.u32(3).u16(2).string(b"ann").string(b"").u16(3).string(b"team").string(b"c").u16(2);
        let read: Vec<_> = ids(&list.0).collect();
        assert_eq!(
            read,
            [
                AskedId { id_type: 2, name: b"ann", community: b"" },
                AskedId { id_type: 3, name: b"team", community: b"c" }
            ]
        );
        assert!(read[0].is_user() && !read[1].is_user());
        assert_eq!(ids(b"").count() + ids(&[0xFF; 4]).count(), 0);
    }
}
