//! The most products that this processor's instructions make, with operands in registers: what kernels are measured against.

/// A run of the fastest instruction that multiplies and adds.
#[derive(Debug, Clone, Copy)]
pub struct Peak {
    /// The instruction.
    pub name: &'static str,
    /// Products that one turn makes.
    pub products: usize,
    turns: fn(usize),
}

impl Peak {
    /// Of this processor.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(peak) = x86::best() {
            return peak;
        }
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        if let Some(peak) = arm::best() {
            return peak;
        }
        Self {
            name: "f32 multiplication and addition",
            products: plain::PRODUCTS,
            turns: plain::turns,
        }
    }

    /// Makes so many turns on the calling thread.
    pub fn run(&self, turns: usize) {
        (self.turns)(turns);
    }
}

mod plain {
    use std::hint::black_box;

    /// Sums that do not wait for one another, as many as hide an instruction's latency.
    const SUMS: usize = 64;
    pub(super) const PRODUCTS: usize = SUMS;

    pub(super) fn turns(count: usize) {
        let (mut sums, factor) = ([1.0_f32; SUMS], black_box(0.5));
        for _ in 0..count {
            for sum in &mut sums {
                // Not fused: where that is no instruction it is a call.
                *sum = *sum * factor + factor;
            }
        }
        black_box(sums);
    }
}

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod arm {
    use std::{
        arch::{
            aarch64::{int32x4_t, vdupq_n_s8, vdupq_n_s32},
            asm,
        },
        hint::black_box,
    };

    use crate::cpu;

    use super::Peak;

    /// Sums that do not wait for one another.
    const SUMS: usize = 16;

    pub(super) fn best() -> Option<Peak> {
        let has = cpu::all().iter().any(|table| table.name == "neon-dotprod");
        has.then_some(Peak {
            name: "sdot",
            products: SUMS * 16,
            // SAFETY: the processor runs that table.
            turns: |count| unsafe { turns(count) },
        })
    }

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn turns(count: usize) {
        let (a, b) = (vdupq_n_s8(3), vdupq_n_s8(-2));
        let mut sums: [int32x4_t; SUMS] = [vdupq_n_s32(0); SUMS];
        for _ in 0..count {
            for sum in &mut sums {
                // SAFETY: the instruction touches no memory.
                unsafe {
                    asm!(
                        "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                        sum = inout(vreg) *sum, a = in(vreg) a, b = in(vreg) b,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
            }
        }
        black_box(sums);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![cfg_attr(
        not(test),
        expect(
            clippy::wildcard_imports,
            reason = "an instruction set is a vocabulary, not a list of names"
        )
    )]

    use std::{
        arch::{asm, x86_64::*},
        hint::black_box,
    };

    use crate::cpu;

    use super::Peak;

    /// Sums that do not wait for one another.
    const SUMS: usize = 12;

    pub(super) fn best() -> Option<Peak> {
        let has = |name| cpu::all().iter().any(|table| table.name == name);
        if has("amx") {
            // The kernels asked the system for tiles when they looked for this table.
            return Some(Peak {
                name: "tdpbssd",
                products: 4 * 16 * 16 * 64,
                turns: tiles,
            });
        }
        if has("avx512-vnni") {
            return Some(Peak {
                name: "vpdpbusd",
                products: SUMS * 64,
                // SAFETY: the processor runs that table, which asks for all that these need.
                turns: |count| unsafe { vnni(count) },
            });
        }
        has("avx2").then_some(Peak {
            name: "vpmaddubsw, vpmaddwd, vpaddd",
            products: SUMS * 32,
            // SAFETY: as above.
            turns: |count| unsafe { avx2(count) },
        })
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn vnni(count: usize) {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(-2)));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..count {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    unsafe fn avx2(count: usize) {
        let (a, b) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(-2)));
        let (one, mut sums) = (_mm256_set1_epi16(1), [_mm256_setzero_si256(); SUMS]);
        for _ in 0..count {
            for sum in &mut sums {
                // Of the sum itself, or they would be made once.
                let pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(a, *sum), one);
                *sum = _mm256_add_epi32(pairs, b);
            }
        }
        black_box(sums);
    }

    /// Four sums of two by two tiles of 16 rows of 64 bytes: palette 1 in the first byte, the tiles' bytes of a row from 16
    /// on, their rows from 48 on (Intel's manual, volume 1, chapter 18).
    fn tiles(count: usize) {
        let mut config = [0_u8; 64];
        config[0] = 1;
        for tile in 0..8 {
            (config[16 + 2 * tile], config[48 + tile]) = (64, 16);
        }
        // SAFETY: the processor has the instructions and the system granted the registers, which are given back; no other
        // memory than the configuration is read.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "2:",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "dec {turns}",
                "jnz 2b",
                "tilerelease",
                config = in(reg) config.as_ptr(), turns = inout(reg) count.max(1) => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
