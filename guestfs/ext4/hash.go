package ext4

// The hash functions of hashed directories (doc: directory.rst, "Hash Tree
// Directories"; fs/ext4/hash.c).

// hashBytes hashes p with one of the hash* functions, an unsigned variant of
// which takes bytes of 0x80 and above as positive numbers.
func hashBytes(p []byte, version uint8, seed *[4]uint32) (major, minor uint32) {
	signed := version < hashLegacyUnsigned
	if !signed {
		version -= hashLegacyUnsigned
	}
	if version == hashLegacy {
		return legacyHash(p, signed), 0
	}
	buf := [4]uint32{0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476} // MD4's start
	if *seed != [4]uint32{} {
		buf = *seed
	}
	var in [8]uint32
	if version == hashTEA {
		for {
			packName(p, in[:4], signed)
			teaMix(&buf, &in)
			if len(p) <= 16 {
				return buf[0], buf[1]
			}
			p = p[16:]
		}
	}
	for {
		packName(p, in[:8], signed)
		halfMD4(&buf, &in)
		if len(p) <= 32 {
			return buf[1], buf[2]
		}
		p = p[32:]
	}
}

// char widens a byte as the C compiler of the writing kernel did.
func char(b byte, signed bool) uint32 {
	if signed {
		return uint32(int32(int8(b)))
	}
	return uint32(b)
}

func legacyHash(p []byte, signed bool) uint32 {
	h0, h1 := uint32(0x12A3FE2D), uint32(0x37ABE8F9)
	for _, b := range p {
		h := h1 + (h0 ^ char(b, signed)*7152373)
		if h&0x80000000 != 0 {
			h -= 0x7FFFFFFF
		}
		h1, h0 = h0, h
	}
	return h0 << 1
}

// packName fills words with the first bytes of p, four a word, most significant
// first, and the rest with a padding made of p's whole length.
func packName(p []byte, words []uint32, signed bool) {
	pad := uint32(len(p)) | uint32(len(p))<<8
	pad |= pad << 16
	p = p[:min(len(p), 4*len(words))]
	for i := range words {
		w := pad
		for range min(4, len(p)) {
			w = w<<8 + char(p[0], signed)
			p = p[1:]
		}
		words[i] = w
	}
}

// teaMix is sixteen rounds of the Tiny Encryption Algorithm with in as the key.
func teaMix(buf *[4]uint32, in *[8]uint32) {
	b0, b1, sum := buf[0], buf[1], uint32(0)
	for range 16 {
		sum += 0x9E3779B9
		b0 += (b1<<4 + in[0]) ^ (b1 + sum) ^ (b1>>5 + in[1])
		b1 += (b0<<4 + in[2]) ^ (b0 + sum) ^ (b0>>5 + in[3])
	}
	buf[0] += b0
	buf[1] += b1
}

// md4Order is which word of the input each step of halfMD4's three rounds adds,
// md4Shift by how much it rotates.
var (
	md4Order = [3][8]uint8{{0, 1, 2, 3, 4, 5, 6, 7}, {1, 3, 5, 7, 0, 2, 4, 6}, {3, 7, 2, 6, 1, 5, 0, 4}}
	md4Shift = [3][4]uint8{{3, 7, 11, 19}, {3, 5, 9, 13}, {3, 9, 11, 15}}
	md4Add   = [3]uint32{0, 0x5A827999, 0x6ED9EBA1} // MD4's square roots of 2 and 3
)

// halfMD4 is MD4's compression of half as many words.
func halfMD4(buf *[4]uint32, in *[8]uint32) {
	a, b, c, d := buf[0], buf[1], buf[2], buf[3]
	for round := range 3 {
		for i := range 8 {
			var f uint32
			switch round {
			case 0:
				f = b&c | ^b&d
			case 1:
				f = b&c | b&d | c&d
			case 2:
				f = b ^ c ^ d
			}
			t := a + f + in[md4Order[round][i]] + md4Add[round]
			s := md4Shift[round][i&3]
			a, b, c, d = d, t<<s|t>>(32-s), b, c
		}
	}
	buf[0] += a
	buf[1] += b
	buf[2] += c
	buf[3] += d
}
