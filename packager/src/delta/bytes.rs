//! Comparing bytes eight at a time.

/// The eight bytes at `at`; zero where there are fewer.
pub fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_le_bytes(*word))
}

/// The four bytes at `at`; zero where there are fewer.
pub fn half(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |half| u32::from_le_bytes(*half))
}

/// How many of the eight bytes are zero.
fn zeros(word: u64) -> usize {
    let any = word | (word >> 4);
    let any = any | (any >> 2);
    let any = (any | (any >> 1)) & 0x0101_0101_0101_0101;
    8 - any.count_ones() as usize
}

/// How many bytes two slices have in common from their beginning.
pub fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let most = a.len().min(b.len());
    let (a, b) = (&a[..most], &b[..most]);
    let (mut wide_a, mut wide_b) = (a.chunks_exact(8), b.chunks_exact(8));
    let mut same = 0;
    for (a, b) in wide_a.by_ref().zip(wide_b.by_ref()) {
        let differ = word(a, 0) ^ word(b, 0);
        if differ != 0 {
            return same + differ.trailing_zeros() as usize / 8;
        }
        same += 8;
    }
    let rest = wide_a.remainder().iter().zip(wide_b.remainder());
    same + rest.take_while(|(a, b)| a == b).count()
}

/// How many bytes two slices have in common up to their ends.
pub fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count()
}

/// In how many places two slices hold the same byte.
pub fn equal_places(a: &[u8], b: &[u8]) -> usize {
    let most = a.len().min(b.len());
    let (a, b) = (&a[..most], &b[..most]);
    let (wide_a, wide_b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = wide_a.remainder().iter().zip(wide_b.remainder()).filter(|(a, b)| a == b).count();
    wide_a.zip(wide_b).map(|(a, b)| zeros(word(a, 0) ^ word(b, 0))).sum::<usize>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_steps_count_as_single_ones() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..2000 {
            let a: Vec<u8> = (0..rng.usize(..40)).map(|_| rng.u8(..3)).collect();
            let mut b: Vec<u8> = (0..rng.usize(..40)).map(|_| rng.u8(..3)).collect();
            let copied = rng.usize(..=a.len().min(b.len()));
            b[..copied].copy_from_slice(&a[..copied]);
            assert_eq!(common_prefix(&a, &b), a.iter().zip(&b).take_while(|(a, b)| a == b).count());
            assert_eq!(equal_places(&a, &b), a.iter().zip(&b).filter(|(a, b)| a == b).count());
            let (mut ra, mut rb) = (a.clone(), b.clone());
            ra.reverse();
            rb.reverse();
            assert_eq!(common_suffix(&ra, &rb), common_prefix(&a, &b));
        }
    }
}
