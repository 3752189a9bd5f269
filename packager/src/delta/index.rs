//! Where in the old side a piece of the new one may be found.

use super::bytes::{half, word};

/// Every so many bytes of the old side have an entry. A look at as many places of the new side in a row meets one.
pub const STRIDE: usize = 8;
/// Bytes that an entry stands for. Recompiled code has a changed address every few dozen bytes: longer pieces are rarely found.
pub const PIECE: usize = 12;
/// Bits of an entry that belong to the piece's digest: most wrong guesses are known without a look at the old side, which would
/// have to come from memory.
const TAG: u32 = 6;
/// What has no entry any more: offsets have the other bits.
const MOST: usize = (1 << (u32::BITS - TAG)) * STRIDE - STRIDE;

/// A table from pieces of the old side to their offsets. Where several fall into one slot the last one stays: those that begin on
/// the same diagonal as before are found without it.
pub struct Index {
    /// 0: empty. Else the number of the piece, counted from 1, above its tag.
    slots: Vec<u32>,
    shift: u32,
}

impl Index {
    /// Reads `old`, of which the first 512 MiB are taken in.
    pub fn new(old: &[u8]) -> Self {
        let bits = (old.len() / STRIDE).next_power_of_two().trailing_zeros().clamp(8, 24);
        let mut index = Self { slots: vec![0; 1 << bits], shift: u64::BITS - bits };
        let last = old.len().min(MOST).saturating_sub(PIECE - 1);
        for (at, number) in (0..last).step_by(STRIDE).zip(1_u32..) {
            let (slot, tag) = index.place(old, at);
            index.slots[slot] = number << TAG | tag;
        }
        index
    }

    /// An offset in the old side where the piece at `at` of `new` may stand. To be compared: it is a guess.
    pub fn guess(&self, new: &[u8], at: usize) -> Option<usize> {
        let (slot, tag) = self.place(new, at);
        let number = self.slots[slot] >> TAG;
        (number > 0 && self.slots[slot] & ((1 << TAG) - 1) == tag).then(|| (number as usize - 1) * STRIDE)
    }

    /// Slot and tag.
    fn place(&self, bytes: &[u8], at: usize) -> (usize, u32) {
        let low = word(bytes, at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let high = u64::from(half(bytes, at + 8)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f).rotate_left(29);
        let mixed = (low ^ high).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let tag = (mixed >> (self.shift - TAG)) & ((1 << TAG) - 1);
        (usize::try_from(mixed >> self.shift).unwrap_or(0), u32::try_from(tag).unwrap_or(0))
    }
}
