//! Applies a patch: what `templates/patch.pl` does on a host, here to hold it against.

use super::bytes::half;
use super::patch::{FIELD, FRAME, MAGIC, SECTION};

/// Why a patch cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// It begins otherwise.
    #[error("this is no patch")]
    Magic,
    /// It ends too early, or goes on behind its end.
    #[error("the patch has not the length it says")]
    Length,
    /// A frame's parts do not fit each other, or not the old side.
    #[error("the patch does not fit")]
    Unfit,
}

/// Makes the new side from the old one and a patch that is not compressed any more.
///
/// # Errors
/// [`PatchError`]. What comes out is to be compared with a digest all the same: other bytes on the old side are not noticed.
pub fn apply(old: &[u8], patch: &[u8]) -> Result<Vec<u8>, PatchError> {
    let mut rest = patch.strip_prefix(MAGIC).ok_or(PatchError::Magic)?;
    let mut new = Vec::new();
    loop {
        let mut sizes = [0; 5];
        for size in &mut sizes {
            let (bytes, after) = rest.split_first_chunk().ok_or(PatchError::Length)?;
            (*size, rest) = (u32::from_be_bytes(*bytes) as usize, after);
        }
        let [makes, sections @ ..] = sizes;
        if makes > FRAME || sections.iter().any(|size| *size > SECTION) {
            return Err(PatchError::Unfit);
        }
        let mut parts = [&[][..]; 4];
        for (part, size) in parts.iter_mut().zip(sections) {
            (*part, rest) = rest.split_at_checked(size).ok_or(PatchError::Length)?;
        }
        if makes == 0 {
            let over = rest.is_empty() && sections == [0; 4];
            return if over { Ok(new) } else { Err(PatchError::Length) };
        }
        new.extend(frame(old, makes, parts).ok_or(PatchError::Unfit)?);
    }
}

fn frame(old: &[u8], makes: usize, [mut moves, mut gaps, mut adds, mut literals]: [&[u8]; 4]) -> Option<Vec<u8>> {
    let mut made = Vec::new();
    let mut old_at = 0_i64;
    while !moves.is_empty() {
        let (literal, copied) = (size(&mut moves)?, size(&mut moves)?);
        let (bytes, after) = literals.split_at_checked(literal)?;
        made.extend_from_slice(bytes);
        literals = after;
        let from = old_at.checked_add(zagzig(ber(&mut moves)?))?;
        let begin = usize::try_from(from).ok()?;
        made.extend_from_slice(old.get(begin..begin.checked_add(copied)?)?);
        old_at = from.checked_add(i64::try_from(copied).ok()?)?;
        if made.len() > makes {
            return None;
        }
    }
    let mut at = 0_usize;
    while !gaps.is_empty() {
        at = at.checked_add(size(&mut gaps)?)?;
        let field = made.get_mut(at..at.checked_add(FIELD)?)?;
        let (add, rest) = adds.split_first_chunk::<FIELD>()?;
        adds = rest;
        field.copy_from_slice(&half(field, 0).wrapping_add(u32::from_le_bytes(*add)).to_le_bytes());
        at += FIELD;
    }
    (adds.is_empty() && literals.is_empty() && made.len() == makes).then_some(made)
}

fn size(from: &mut &[u8]) -> Option<usize> {
    usize::try_from(ber(from)?).ok()
}

fn ber(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    loop {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        if number >> 56 != 0 {
            return None;
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
}

fn zagzig(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}
