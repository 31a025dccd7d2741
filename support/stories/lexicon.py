"""The words of the story world, each in English and Chinese, grouped by what they may stand for in a plot.

To add a word, add it to its table. Four kinds of table, entries parted by commas:

    noun     a kite 一只风筝           article and noun; Chinese measure word and noun (an underscore is a space)
    place    by the river 小河/边      how one is there; Chinese noun / what follows it
    person   a baker 一位面包师 he     also family and first names, which take no article
    phrase   curious 好奇的            anything else: adjectives, feelings, what people do and when

A phrase may carry a second form after a slash, for something done: `sweep the yard/swept the yard`.
"""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Word:
    """One word of the world; two words are the same only if they are the same object."""

    kind: str  # person, animal, object, place, or "" for words that name nothing
    en: str
    zh: str
    article: str = ""  # what stands before the noun when it is new: "a ", "a jar of "
    measure: str = ""  # the Chinese measure word
    at: str = ""  # English: what makes a place of the noun, "by the "
    within: str = ""  # Chinese: the same, "边"
    pronoun: str = "it"
    done: tuple[str, str] = ("", "")  # the second form of a phrase in both languages
    links: dict[str, tuple["Word", ...]] = field(default_factory=dict, repr=False)


ENTRY = re.compile(r"([^\u4e00-\u9fff]+?)\s+([\u4e00-\u9fff][^ ]*)(?: (he|she))?")
NOUNS: dict[str, Word] = {}  # every noun by its English name


def entries(table):
    """The (English, Chinese, pronoun) of each entry of a table."""
    for line in table.split(","):
        found = ENTRY.fullmatch(" ".join(line.split()))
        if found is None:
            raise ValueError(f"lexicon entry {line.strip()!r}: expected English, a space, Chinese")
        yield found.groups()


def nouns(kind, table):
    """The words of a table of nouns; a noun that stands in several tables is one word."""
    words = []
    for english, chinese, pronoun in entries(table):
        article, _, name = english.rpartition(" ")
        if name not in NOUNS:
            counted = chinese.startswith("一") and article
            NOUNS[name] = Word(
                kind,
                name.replace("_", " "),
                chinese[2:] if counted else chinese,
                article=article + " " if article else "",
                measure=chinese[1] if counted else "",
                pronoun=pronoun or "it",
            )
        words.append(NOUNS[name])
    return tuple(words)


def places(table):
    """The words of a table of places."""
    words = []
    for english, chinese, _ in entries(table):
        at, _, name = english.rpartition(" ")
        noun, _, within = chinese.partition("/")
        if name not in NOUNS:
            NOUNS[name] = Word("place", name.replace("_", " "), noun, at=at + " ", within=within)
        words.append(NOUNS[name])
    return tuple(words)


def phrases(table):
    """The words of a table of phrases."""
    words = []
    for english, chinese, _ in entries(table):
        english, _, english_done = english.partition("/")
        chinese, _, chinese_done = chinese.partition("/")
        words.append(Word("", english, chinese, done=(english_done, chinese_done)))
    return tuple(words)


def link(name, table):
    """Gives each noun left of a colon the nouns to its right under `name`."""
    for line in table.split(","):
        left, _, right = line.partition(":")
        NOUNS[left.strip()].links[name] = tuple(NOUNS[noun] for noun in right.split())


# --- People -----------------------------------------------------------------------------------

# The hero's name is drawn from all of these; story.py needs their number to be a multiple of ten.
NAMES = nouns(
    "person",
    """
    Lily 莉莉 she, Tom 汤姆 he, Anna 安娜 she, Benny 本尼 he, Mia 米娅 she, Leo 利奥 he,
    Emma 艾玛 she, Max 马克斯 he, Lulu 露露 she, Sam 山姆 he, Nina 妮娜 she, Danny 丹尼 he,
    Coco 可可 she, Jack 杰克 he, Dora 朵拉 she, Tim 蒂姆 he, Sara 莎拉 she, Peter 彼得 he,
    Ella 艾拉 she, Paul 保罗 he, Zoe 佐伊 she, Henry 亨利 he, Lucy 露西 she, Oscar 奥斯卡 he,
    Kate 凯特 she, Toby 托比 he, Polly 波莉 she, Hugo 雨果 he, Wendy 温迪 she, Luke 卢克 he,
    Bella 贝拉 she, Finn 芬恩 he, Mei 小梅 she, Ming 小明 he, Lan 小兰 she, Hao 小浩 he,
    Ting 婷婷 she, Tao 小涛 he, Yan 小燕 she, Jun 小军 he
    """,
)
FAMILY = nouns(
    "person",
    """
    mother 妈妈 she, father 爸爸 he, grandmother 奶奶 she, grandfather 爷爷 he, aunt 姑姑 she,
    uncle 叔叔 he, big_sister 姐姐 she, big_brother 哥哥 he
    """,
)
JOBS = nouns(
    "person",
    """
    a baker 一位面包师 he, a farmer 一位农夫 he, a miller 一位磨坊主 he, a fisherman 一位渔夫 he,
    a blacksmith 一位铁匠 he, a carpenter 一位木匠 he, a tailor 一位裁缝 she, a potter 一位陶匠 she,
    a gardener 一位园丁 she, a shepherd 一位牧羊人 he, a beekeeper 一位养蜂人 she,
    a cook 一位厨师 he, a teacher 一位老师 she, a doctor 一位医生 she, a postman 一位邮递员 he,
    a librarian 一位图书管理员 she, a painter 一位画家 she, a musician 一位乐师 he,
    a sailor 一位水手 he, a clockmaker 一位钟表匠 he, a shoemaker 一位鞋匠 he,
    a grocer 一位杂货店主 she, a florist 一位花店老板 she, a weaver 一位织布匠 she,
    a woodcutter 一位樵夫 he, a ferryman 一位船夫 he, a toymaker 一位玩具匠 he,
    a jeweller 一位珠宝匠 she, a milkmaid 一位挤奶姑娘 she, a butcher 一位肉店老板 he,
    a fruit_seller 一位水果商 she, a ropemaker 一位制绳匠 he
    """,
)

# --- Animals ----------------------------------------------------------------------------------

ANIMALS = nouns(
    "animal",
    """
    a rabbit 一只兔子, a squirrel 一只松鼠, a mouse 一只老鼠, a hedgehog 一只刺猬, a fox 一只狐狸,
    a bear 一头棕熊, a monkey 一只猴子, a deer 一头小鹿, a goat 一只山羊, a dog 一只黄狗,
    a cat 一只花猫, a horse 一匹白马, a donkey 一头毛驴, a pig 一头小猪, a duck 一只鸭子,
    a goose 一只大鹅, a hen 一只母鸡, a crow 一只乌鸦, a parrot 一只鹦鹉, a turtle 一只乌龟,
    a frog 一只青蛙, an otter 一只水獭, a raccoon 一只浣熊, a badger 一只獾, a panda 一只熊猫,
    an elephant 一头大象, an ox 一头老牛, a sheep 一只绵羊, a pigeon 一只鸽子, a mole 一只鼹鼠,
    a wolf 一只灰狼, a beaver 一只河狸
    """,
)
BIRDS = nouns(
    "animal",
    """
    a crow 一只乌鸦, a parrot 一只鹦鹉, a pigeon 一只鸽子, a magpie 一只喜鹊, a sparrow 一只麻雀,
    a swallow 一只燕子, a robin 一只知更鸟, a lark 一只云雀, an owl 一只猫头鹰, a seagull 一只海鸥,
    an eagle 一只老鹰, a swan 一只天鹅, a crane 一只仙鹤, a woodpecker 一只啄木鸟, a cuckoo 一只布谷鸟,
    a nightingale 一只夜莺
    """,
)
PETS = nouns(
    "animal",
    """
    a puppy 一只小狗, a kitten 一只小猫, a lamb 一只小羊, a pony 一匹小马, a hamster 一只仓鼠,
    a duckling 一只小鸭, a chick 一只小鸡, a calf 一头小牛, a piglet 一头小花猪, a guinea_pig 一只豚鼠
    """,
)
SMALL_CREATURES = nouns(
    "animal",
    """
    an ant 一只蚂蚁, a bee 一只蜜蜂, a butterfly 一只蝴蝶, a beetle 一只甲虫, a snail 一只蜗牛,
    a cricket 一只蟋蟀, a ladybird 一只瓢虫, a dragonfly 一只蜻蜓, a firefly 一只萤火虫,
    a grasshopper 一只蚱蜢, a lizard 一只蜥蜴, a caterpillar 一条毛毛虫
    """,
)

# --- Food -------------------------------------------------------------------------------------

FRUITS = nouns(
    "object",
    """
    an apple 一个苹果, a pear 一个梨子, a peach 一个桃子, a plum 一个李子, an orange 一个橙子,
    a banana 一根香蕉, a cherry 一颗樱桃, a grape 一颗葡萄, a strawberry 一颗草莓, a mango 一个芒果,
    a melon 一个甜瓜, a lemon 一个柠檬, an apricot 一个杏子, a fig 一个无花果, a pineapple 一个菠萝,
    a coconut 一个椰子
    """,
)
VEGETABLES = nouns(
    "object",
    """
    a carrot 一根胡萝卜, a cabbage 一棵卷心菜, a potato 一个土豆, a pumpkin 一个南瓜, a turnip 一个萝卜,
    an onion 一个洋葱, a tomato 一个西红柿, a cucumber 一根黄瓜, a lettuce 一棵生菜,
    a mushroom 一朵蘑菇, a corncob 一根玉米, a sweet_potato 一个红薯, an aubergine 一个茄子,
    a pepper 一个辣椒
    """,
)
SNACKS = nouns(
    "object",
    """
    a cake 一块蛋糕, a pie 一块馅饼, a bun 一个圆面包, a biscuit 一块饼干, a pancake 一张煎饼,
    a sandwich 一个三明治, a pretzel 一个椒盐卷饼, a tart 一个蛋挞, a waffle 一块华夫饼,
    a muffin 一个松饼, a dumpling 一个饺子, a rice_ball 一个饭团, a cheese_roll 一个奶酪卷,
    a honey_cake 一块蜂蜜蛋糕, a doughnut 一个甜甜圈, a mooncake 一个月饼
    """,
)
ANIMAL_FOOD = nouns(
    "object",
    """
    a nut 一颗坚果, an acorn 一颗橡果, a piece of cheese 一块奶酪, a jar of honey 一罐蜂蜜,
    a sausage 一根香肠, a bone 一根骨头, a fish 一条小鱼, a bowl of milk 一碗牛奶,
    a loaf of bread 一块面包, a sunflower_seed 一颗葵花籽, a blueberry 一颗蓝莓, an egg 一个鸡蛋,
    a bamboo_shoot 一根竹笋
    """,
)
SUPPERS = nouns(
    "object",
    """
    noodles 面条, porridge 热粥, stew 炖菜, vegetable_soup 蔬菜汤, dumplings 水饺, pancakes 煎饼,
    fried_rice 炒饭, roast_potatoes 烤土豆, bean_soup 豆汤, steamed_buns 包子, omelettes 煎蛋卷,
    fish_soup 鱼汤, apple_pie 苹果派, rice_pudding 米布丁, tomato_soup 番茄汤, pumpkin_soup 南瓜汤
    """,
)

# --- Things: the key object of a story is one of these ------------------------------------------

TOYS = nouns(
    "object",
    """
    a kite 一只风筝, a ball 一个皮球, a doll 一个布娃娃, a spinning_top 一个陀螺, a puppet 一个木偶,
    a teddy_bear 一只玩具熊, a toy_boat 一只玩具船, a whistle 一个哨子, a pinwheel 一个风车,
    a toy_train 一列玩具火车, a marble 一颗弹珠, a yo-yo 一个悠悠球, a hoop 一个铁环,
    a skipping_rope 一根跳绳, a puzzle 一副拼图, a toy_robot 一个机器人, a balloon 一个气球,
    a rattle 一个拨浪鼓, a paper_plane 一架纸飞机, a toy_car 一辆小汽车
    """,
)
CLOTHES = nouns(
    "object",
    """
    a scarf 一条围巾, a hat 一顶帽子, a coat 一件大衣, a sweater 一件毛衣, a cap 一顶便帽,
    a cloak 一件斗篷, a jacket 一件外套, a shirt 一件衬衫, a waistcoat 一件背心, a raincoat 一件雨衣,
    a robe 一件长袍, a shawl 一条披肩
    """,
)
INSTRUMENTS = nouns(
    "object",
    """
    a flute 一支长笛, a drum 一面小鼓, a violin 一把小提琴, a guitar 一把吉他, a trumpet 一把小号,
    a harmonica 一支口琴, a harp 一架竖琴, a horn 一支号角, a lute 一把琵琶, a cello 一把大提琴,
    an accordion 一架手风琴, a xylophone 一架木琴
    """,
)
TREASURES = nouns(
    "object",
    """
    a ring 一枚戒指, a necklace 一条项链, a gold_coin 一枚金币, a pearl 一颗珍珠, a key 一把钥匙,
    a mirror 一面镜子, a locket 一个吊坠, a crown 一顶王冠, a gemstone 一块宝石, a brooch 一枚胸针,
    a pocket_watch 一块怀表, a bracelet 一条手链, a comb 一把梳子, a medal 一枚奖章
    """,
)
TOOLS = nouns(
    "object",
    """
    a hammer 一把锤子, a saw 一把锯子, a spade 一把铲子, an axe 一把斧头, a rake 一把耙子,
    a bucket 一个水桶, a ladder 一架梯子, a rope 一条绳子, a basket 一个篮子, a broom 一把扫帚,
    a lantern 一盏灯笼, a fishing_rod 一根鱼竿
    """,
)
DISHES = nouns(
    "object",
    """
    a cup 一个杯子, a bowl 一个大碗, a vase 一个花瓶, a plate 一个盘子, a teapot 一把茶壶,
    a jug 一个水罐, a jar 一个罐子, a pot 一口锅, a lamp 一盏台灯, a clock 一座时钟,
    a candlestick 一个烛台, a music_box 一个音乐盒
    """,
)
FLOWERS = nouns(
    "object",
    """
    a rose 一朵玫瑰, a tulip 一朵郁金香, a sunflower 一朵向日葵, a daisy 一朵雏菊, a violet 一朵紫罗兰,
    a lotus 一朵荷花, a peony 一朵牡丹, an orchid 一朵兰花, a jasmine 一朵茉莉花,
    a marigold 一朵金盏花, a bluebell 一朵风铃草, a snowdrop 一朵雪花莲, a chrysanthemum 一朵菊花,
    a camellia 一朵山茶花
    """,
)
KEYS = TOYS + CLOTHES + INSTRUMENTS + TREASURES + TOOLS + DISHES

# --- Places -----------------------------------------------------------------------------------

HOMES = nouns(
    "place",
    """
    a cottage 一座小木屋, a village 一个村子, a little_town 一座小镇, a farmhouse 一座农舍,
    a log_cabin 一间原木屋, a lighthouse 一座灯塔, an inn 一家客栈, a stone_house 一座石头房子,
    a castle 一座城堡, a tower 一座塔楼
    """,
)
LANDS = nouns(
    "place",
    """
    the forest 森林, the river 小河, the lake 湖, the sea 大海, the hill 小山, the mountain 高山,
    the prairie 草原, the desert 沙漠, the bay 海湾, the valley 山谷, the canal 运河, the waterfall 瀑布,
    the vineyard 葡萄园, the orchard 果园, the bamboo_grove 竹林, the marsh 沼泽
    """,
)
WILDS = places(
    """
    in the meadow 草地/上, on the beach 沙滩/上, by the pond 池塘/边, in the garden 花园/里,
    in the cornfield 玉米地/里, in the park 公园/里, by the well 水井/边, at the crossroads 岔路口/边,
    on the cliff 悬崖/上, in the pine_wood 松林/里, by the brook 小溪/边, on the playground 操场/上,
    in the wheat_field 麦田/里, on the dunes 沙丘/上, at the harbour 码头/上, in the courtyard 院子/里,
    on the bridge 石桥/上, on the hilltop 山顶/上, in the birch_wood 白桦林/里, by the fountain 喷泉/边,
    in the rice_field 稻田/里, on the riverbank 河岸/上, in the clearing 林间空地/上,
    by the windmill 大风车/旁, on the market_square 集市广场/上, at the old_ruin 旧城墙/边,
    in the gorge 峡谷/里, on the village_green 村口空地/上, in the cherry_orchard 樱桃园/里,
    by the spring 泉水/边, on the pier 栈桥/上, by the dam 水坝/边
    """,
)
NOOKS = places(
    """
    under the bush 灌木丛/下, behind the rock 大石头/后面, in the tall_grass 草丛/里,
    in the hollow_log 空树干/里, beside the fence 篱笆/旁边, under the bench 长椅/下,
    in the puddle 水坑/里, behind the haystack 干草堆/后面, in the ditch 水沟/里,
    between the roots 树根/中间, in the reeds 芦苇/里, in the flowerbed 花坛/里, beside the gate 栅栏门/旁边,
    behind the shed 棚子/后面, under the cart 马车/下, in the barrel 木桶/里, in the heap_of_leaves 落叶堆/里,
    beside the tree_stump 树桩/旁边, in the wheelbarrow 独轮车/里, under the hedge 树篱/下,
    in the rabbit_hole 兔子洞/里, beside the beehive 蜂箱/旁边, under the ferns 蕨草/下, in the trough 水槽/里
    """,
)
CORNERS = places(
    """
    under the bed 床/底下, behind the curtain 窗帘/后面, in the cupboard 橱柜/里, on the shelf 架子/上,
    in the drawer 抽屉/里, under the stairs 楼梯/下, behind the stove 炉子/后面, in the attic 阁楼/里,
    in the cellar 地窖/里, under the table 饭桌/下, on the windowsill 窗台/上, in the wardrobe 衣柜/里,
    behind the sofa 沙发/后面, under the pillow 枕头/下, behind the door 房门/后面, in the laundry_basket 洗衣篮/里
    """,
)
SHOPS = places(
    """
    at the bakery 面包店/里, on the farm 农场/里, at the mill 磨坊/里, at the fish_market 鱼市/上,
    in the forge 铁匠铺/里, in the workshop 木工坊/里, in the tailor_shop 裁缝铺/里, in the pottery 陶艺坊/里,
    in the nursery 苗圃/里, in the pasture 牧场/里, in the bee_yard 养蜂场/里, in the kitchen 大厨房/里,
    at the school 学校/里, in the clinic 诊所/里, at the post_office 邮局/里, in the library 图书馆/里,
    in the studio 画室/里, in the theatre 剧院/里, in the boathouse 船坞/里, in the clock_shop 钟表店/里,
    in the shoe_shop 鞋店/里, at the grocery 杂货店/里, in the flower_shop 花店/里, in the weaving_mill 织布坊/里,
    in the wood_yard 木料场/里, at the ferry 渡口/边, in the toyshop 玩具店/里, in the jewel_shop 珠宝店/里,
    in the dairy 奶坊/里, at the butcher_shop 肉店/里, at the fruit_stall 水果摊/边, in the rope_yard 绳坊/里
    """,
)
TREES = places(
    """
    in the oak 橡树/上, in the pine 松树/上, in the willow 柳树/上, in the maple 枫树/上,
    in the birch 白桦树/上, in the elm 榆树/上, in the chestnut_tree 栗子树/上, in the apple_tree 苹果树/上,
    in the cherry_tree 樱桃树/上, in the poplar 白杨树/上, in the walnut_tree 核桃树/上, in the beech 山毛榉/上
    """,
)

# --- Phrases ----------------------------------------------------------------------------------

TRAITS = phrases(
    """
    kind 善良的, clever 聪明的, curious 好奇的, cheerful 开朗的, quiet 文静的, lively 活泼的,
    gentle 温和的, dreamy 爱幻想的, hard-working 勤快的, funny 爱逗人笑的, polite 有礼貌的,
    friendly 友好的, playful 贪玩的, merry 爱笑的, helpful 热心的, talkative 爱说话的, tidy 爱干净的,
    bright 机灵的, sweet 可爱的, warm-hearted 好心肠的, tall 高高的, thin 瘦瘦的, small 个子小小的,
    curly-haired 卷头发的, freckled 长着雀斑的, dark-eyed 黑眼睛的, rosy-cheeked 脸蛋红红的,
    long-legged 长腿的, round-faced 圆脸的, nimble 灵巧的, busy 总是忙个不停的, serious 认真的
    """,
)
AIRS = phrases(
    """
    friendly 和气的, grumpy 坏脾气的, sleepy 睡眼惺忪的, plump 胖乎乎的, young 年轻的, merry 乐呵呵的,
    tired 疲惫的, busy 忙忙碌碌的, wise 见多识广的, shy 害羞的, quiet 安静的, lazy 懒洋洋的, old 上了年纪的,
    gentle 温和的, proud 骄傲的, polite 彬彬有礼的, clumsy 笨手笨脚的, chatty 爱唠叨的, lonely 孤零零的,
    cheeky 调皮的, dusty 满身灰尘的, dripping 浑身湿透的, skinny 瘦巴巴的, shivering 冻得发抖的,
    limping 一瘸一拐的, solemn 一本正经的, yawning 打着哈欠的, smiling 笑眯眯的, sneezing 直打喷嚏的,
    squinting 眯着眼睛的, whistling 吹着口哨的, freckled 长着斑点的
    """,
)
HOBBIES = phrases(
    """
    singing 唱歌, drawing 画画, swimming 游泳, dancing 跳舞, reading 看书, climbing 爬高, fishing 钓鱼,
    baking 烤点心, skating 滑冰, knitting 织毛线, gardening 种花, running 跑步, carving 刻木头, sewing 缝东西,
    telling jokes 讲笑话, watching clouds 看云, counting stars 数星星, collecting stones 收集石头,
    making up songs 编歌谣, swinging 荡秋千, building sandcastles 堆沙堡, solving riddles 猜谜语,
    feeding birds 喂鸟, folding paper 折纸, jumping in puddles 踩水坑, writing poems 写诗,
    whistling 吹口哨, playing chess 下棋, picking berries 采浆果, doing magic tricks 变戏法,
    rowing 划船, painting eggs 画彩蛋
    """,
)
GAMES = phrases(
    """
    played tag 玩捉人, played hide-and-seek 捉迷藏, sailed nutshells 放核桃壳小船, hopped on one leg 单脚跳,
    played shop 玩开店, picked daisies 采野花, climbed trees 爬树, rolled in the grass 在草地上打滚,
    told jokes 讲笑话, sang songs 唱歌, danced in circles 转着圈跳舞, looked for shells 找贝壳, ran races 赛跑,
    collected leaves 捡树叶, skipped stones 打水漂, watched the clouds 看云彩, chased the wind 追着风跑,
    made flower crowns 编花环, drew with chalk 用粉笔画画, blew bubbles 吹泡泡, played catch 扔沙包,
    played chess 下棋, walked on stilts 踩高跷, played leapfrog 玩跳马, guessed riddles 猜谜语,
    built a hut 搭小棚子, juggled pebbles 抛石子, played pirates 扮海盗, listened for echoes 听回声,
    traded stickers 换贴纸, turned cartwheels 翻跟头, dug holes 挖土坑
    """,
)
CHORES = phrases(
    """
    sweep the yard/swept the yard 扫院子/把院子扫得干干净净, wash the dishes/washed the dishes 洗碗/把碗洗得干干净净,
    feed the hens/fed the hens 喂鸡/把鸡喂饱了, carry the water/carried the water 挑水/把水挑好了,
    stack the firewood/stacked the firewood 堆柴火/把柴火堆得整整齐齐, water the flowers/watered the flowers 浇花/把花都浇了,
    clean the windows/cleaned the windows 擦窗户/把窗户擦得亮亮的, polish the pans/polished the pans 擦锅/把锅擦得锃亮,
    pull the weeds/pulled the weeds 拔草/把草拔光了, rinse the rice/rinsed the rice 淘米/把米淘好了,
    sort the buttons/sorted the buttons 分纽扣/把纽扣分好了, fold the laundry/folded the laundry 叠衣服/把衣服叠得整整齐齐,
    groom the cow/groomed the cow 给奶牛梳毛/给奶牛梳好了毛, scrub the floor/scrubbed the floor 刷地板/把地板刷得发亮,
    gather the leaves/gathered the leaves 扫落叶/把落叶扫成了一堆, shell the peas/shelled the peas 剥豌豆/把豌豆剥好了,
    dust the books/dusted the books 掸书上的灰/把书上的灰掸得干干净净, brush the horses/brushed the horses 刷马/把马刷得油光发亮,
    paint the fence/painted the fence 刷篱笆/把篱笆刷得雪白, hang up the washing/hung up the washing 晾衣服/把衣服都晾好了,
    chop the herbs/chopped the herbs 切香草/把香草切碎了, knead the dough/kneaded the dough 揉面团/把面团揉好了,
    mend the net/mended the net 补网/把网补好了, wind the wool/wound the wool 绕毛线/把毛线绕成了团,
    light the oven/lit the oven 生灶火/把灶火生得旺旺的, pick the beans/picked the beans 摘豆角/把豆角摘了一筐,
    fill the sacks/filled the sacks 装袋子/把袋子装得满满的, clear the path/cleared the path 清理小路/把小路清理好了,
    beat the carpets/beat the carpets 拍地毯/把地毯拍得没有一点灰, grind the spices/ground the spices 磨香料/把香料磨成了粉,
    rock the baby/rocked the baby 哄宝宝/把宝宝哄睡了, count the coins/counted the coins 数铜板/把铜板数得清清楚楚
    """,
)
TIMES = phrases(
    """
    one morning 一天早上, one afternoon 一天下午, one sunny day 一个晴天, one spring morning 一个春天的早晨,
    one summer afternoon 夏天的一个下午, one autumn day 秋天的一天, one breezy day 一个有风的日子,
    one Sunday 一个星期天, one Saturday morning 一个星期六的早上, one holiday 一个假日, on market day 赶集那天,
    one fine day 有一天, early one morning 一天清晨, on the first day of May 五月的第一天,
    the day after the fair 庙会后的第二天, one cloudless morning 一个万里无云的早晨
    """,
)
WINTERS = phrases(
    """
    one winter morning 一个冬天的早晨, one snowy day 一个下雪天, one frosty afternoon 一个寒冷的下午,
    on the first day of snow 下第一场雪的那天, one icy day 一个结冰的日子, on New Year's Day 新年那天,
    one white morning 一个白茫茫的早晨, in the coldest week of the year 一年里最冷的那几天
    """,
)
NIGHTS = phrases(
    """
    one night 一天夜里, one stormy night 一个风雨交加的夜晚, one moonless night 一个没有月亮的夜晚,
    one autumn night 一个秋天的夜晚, late one evening 一天深夜, one windy night 一个刮大风的夜晚,
    one warm night 一个暖和的夜晚, at midnight 一天半夜
    """,
)
SKIES = phrases(
    """
    the sun was shining 阳光明媚, the birds were singing 鸟儿在歌唱, the wind chimes tinkled 风铃叮当响,
    the grass was wet with dew 草上还挂着露水, white clouds drifted by 白云飘飘, a soft wind was blowing 微风轻吹,
    the air smelled of hay 空气里飘着干草香, the sky was deep blue 天空碧蓝碧蓝的, the cherry trees were in bloom 樱花开得正好,
    a rooster crowed 公鸡喔喔叫, bells rang far away 远处传来钟声, the streets were still empty 街上还没有人,
    it smelled of lilac 到处飘着丁香花香, the leaves rustled softly 树叶沙沙作响, smoke rose from the chimneys 烟囱里冒着炊烟,
    the fog had just lifted 雾刚刚散去
    """,
)
STORMS = phrases(
    """
    it began to rain 下起了雨, a thick fog came down 起了大雾, the wind began to howl 刮起了大风,
    dark clouds rolled in 乌云滚滚而来, thunder rumbled 响起了雷声, hail began to fall 下起了冰雹,
    the sky turned black 天一下子黑了, lightning flashed 划过一道闪电
    """,
)
JOYS = phrases(
    """
    happy 高兴, glad 开心, proud 自豪, cheerful 快活, grateful 感激, excited 兴奋, content 满足, joyful 快乐,
    peaceful 安心, lighthearted 轻松, lucky 幸运, blissful 幸福
    """,
)
SORROWS = phrases(
    """
    sad 难过, unhappy 不开心, heartbroken 伤心, miserable 痛苦, gloomy 郁闷, downcast 沮丧, lonely 孤单,
    disappointed 失望
    """,
)
WORRIES = phrases(
    """
    worried 担心, nervous 紧张, afraid 害怕, anxious 焦急, uneasy 不安, frightened 惊慌
    """,
)
GUILTS = phrases("ashamed 羞愧, sorry 后悔, guilty 内疚, embarrassed 难为情, remorseful 懊悔")
MANNERS = phrases(
    """
    quietly 悄悄地, carefully 小心地, slowly 慢慢地, gently 轻轻地, quickly 飞快地, bravely 勇敢地,
    patiently 耐心地, eagerly 急切地
    """,
)
COLOURS = phrases(
    """
    red 红色, blue 蓝色, green 绿色, yellow 黄色, white 白色, black 黑色, brown 棕色, pink 粉红色, purple 紫色,
    orange 橙色, grey 灰色, golden 金色, silver 银色, turquoise 青绿色, cream-coloured 米色, scarlet 鲜红色
    """,
)
TOY_LOOKS = phrases(
    """
    little 小小的, big 大大的, old 旧旧的, new 崭新的, shiny 亮闪闪的, pretty 漂亮的, lovely 可爱的, fine 精致的,
    plain 朴素的, strange 奇特的, funny 滑稽的, splendid 华丽的, light 轻巧的, sturdy 结实的, painted 彩绘的,
    handmade 手工做的
    """,
)
CLOTHES_LOOKS = phrases(
    """
    warm 暖和的, soft 柔软的, thick 厚厚的, thin 薄薄的, woollen 羊毛的, striped 带条纹的, spotted 带圆点的, checked 格子的,
    old 旧旧的, new 崭新的, patched 打着补丁的, pretty 漂亮的, silk 丝绸的, velvet 天鹅绒的, long 长长的, faded 褪了色的
    """,
)
INSTRUMENT_LOOKS = phrases(
    """
    little 小小的, old 旧旧的, new 崭新的, shiny 亮闪闪的, beautiful 美丽的, fine 精致的, plain 朴素的, curved 弯弯的,
    polished 擦得发亮的, scratched 带着划痕的, painted 彩绘的, handmade 手工做的
    """,
)
TREASURE_LOOKS = phrases(
    """
    tiny 小巧的, old 古老的, shiny 亮闪闪的, beautiful 美丽的, heavy 沉甸甸的, fine 精致的, simple 朴素的, strange 奇特的,
    precious 珍贵的, splendid 华丽的, smooth 光滑的, glittering 闪着光的
    """,
)
TOOL_LOOKS = phrases(
    """
    little 小小的, big 大大的, old 旧旧的, new 崭新的, sturdy 结实的, rusty 生了锈的, light 轻巧的, heavy 沉重的,
    handy 顺手的, worn 磨旧了的, muddy 沾着泥的, borrowed 借来的
    """,
)
DISH_LOOKS = phrases(
    """
    little 小小的, big 大大的, old 旧旧的, shiny 亮闪闪的, pretty 漂亮的, fine 精致的, plain 朴素的, painted 彩绘的,
    round 圆圆的, costly 贵重的, slender 细长的, antique 古色古香的
    """,
)
FLAVOURS = phrases(
    """
    sweet 甜甜的, juicy 多汁的, fresh 新鲜的, ripe 熟透的, big 大大的, little 小小的, lovely 可爱的, perfect 完美的,
    fragrant 香喷喷的, round 圆圆的, tasty 好吃的, plump 饱满的
    """,
)
TOPICS = phrases(
    """
    the moon 月亮, the stars 星星, spring 春天, the rain 小雨, the rainbow 彩虹, friendship 友谊, the sun 太阳,
    dreams 梦想, summer 夏天, the wind 清风, the clouds 云朵, a dragon 巨龙, a giant 巨人, whales 鲸鱼, the harvest 丰收,
    the snow 雪花, a brave knight 勇敢的骑士, a flying carpet 飞毯, pirates 海盗, a talking tree 会说话的树,
    a golden bell 金铃铛, wild geese 大雁, a glass mountain 玻璃山, a kind witch 善良的女巫
    """,
)
RIDDLES = phrases(
    """
    What follows you all day and hides at night?/your shadow 什么东西白天跟着你，夜里就不见了？/影子,
    What opens a door without a hand?/the wind 什么东西没有手，却能推开门？/风,
    What blooms in the rain and closes in the sun?/an umbrella 什么花下雨才开，天晴就谢？/雨伞,
    What grows shorter the longer it stands?/a candle 什么东西越站越矮？/蜡烛,
    What has one eye and cannot see?/a needle 什么东西只有一只眼，却什么也看不见？/针,
    What is a plate one night and a boat another?/the moon 什么东西有时像圆盘，有时像小船？/月亮,
    What answers you but never speaks first?/an echo 谁总学你说话，却从不先开口？/回声,
    What has many leaves but no branches?/a book 什么东西不说话，却能教你许多学问？/书,
    What gets bigger the more you take away?/a hole 什么东西越挖越大？/洞,
    What falls from the sky and never gets hurt?/the snow 什么花从天上来，落到手里就不见？/雪花,
    What is always coming but never arrives?/tomorrow 什么总是要来，却永远来不了？/明天,
    What is yours but others use it more?/your name 什么是你的，别人却用得最多？/名字,
    What goes up but never comes down?/your age 什么只会往上长，从不往下掉？/年龄,
    What has four legs but cannot walk?/a chair 什么东西四条腿，却不会走路？/椅子,
    What climbs out of the chimney without feet?/smoke 什么东西没有脚，却能爬出烟囱？/烟,
    What crosses every hill but never moves?/the road 什么东西翻过座座山岗，自己却一动不动？/路,
    What travels the world from one corner?/a stamp 什么东西待在角落里，却能走遍天下？/邮票,
    What gets wet while it dries?/a towel 什么东西越擦身子越湿？/毛巾,
    What has a neck but no head?/a bottle 什么东西有脖子却没有头？/瓶子,
    What has fingers but no bones?/a glove 什么东西有五个手指，却没有骨头？/手套
    """
)

# --- What goes with what ----------------------------------------------------------------------

link(
    "likes",
    """
    rabbit: carrot lettuce cabbage, squirrel: nut acorn, mouse: cheese corncob,
    hedgehog: apple mushroom pear, fox: grape sausage, bear: honey blueberry, monkey: banana peach,
    deer: apple lettuce, goat: cabbage turnip, dog: bone sausage, cat: fish milk,
    horse: carrot apple, donkey: carrot turnip, pig: potato pumpkin sweet_potato,
    duck: bread corncob, goose: lettuce bread, hen: corncob sunflower_seed, crow: cheese nut,
    parrot: nut banana sunflower_seed, turtle: strawberry lettuce, frog: cucumber plum,
    otter: fish egg, raccoon: corncob egg melon, badger: mushroom honey, panda: bamboo_shoot apple,
    elephant: banana melon coconut, ox: corncob turnip, sheep: cabbage lettuce,
    pigeon: bread sunflower_seed, mole: potato carrot, wolf: sausage bone, beaver: carrot pear,
    magpie: cherry bread, sparrow: bread sunflower_seed, swallow: blueberry cherry,
    robin: cherry blueberry, lark: sunflower_seed corncob, owl: egg fish, seagull: fish bread,
    eagle: fish sausage, swan: bread lettuce, crane: fish corncob, woodpecker: nut acorn,
    cuckoo: cherry plum, nightingale: blueberry cherry
    """,
)
SELLS = {
    "farmer": "carrot cabbage potato pumpkin turnip corncob lettuce egg sweet_potato cucumber",
    "fruit_seller": "apple pear peach plum banana cherry grape strawberry melon coconut blueberry",
    "grocer": "nut acorn mushroom sunflower_seed bamboo_shoot",
    "beekeeper": "honey",
    "fisherman": "fish",
    "milkmaid": "milk cheese",
    "butcher": "sausage bone",
    "baker": "bread",
}
for _seller, _goods in SELLS.items():
    for _food in _goods.split():
        NOUNS[_food].links["seller"] = (NOUNS[_seller],)
for _job, _shop in zip(JOBS, SHOPS, strict=True):  # the two tables stand in the same order
    _job.links["shop"] = (_shop,)

# What a slot of a template may stand for: `{animal}` and `{animal2}` are two words of "animal".
CLASSES = {
    "hero": NAMES,
    "friend": NAMES,
    "family": FAMILY,
    "job": JOBS,
    "animal": ANIMALS,
    "helper": ANIMALS,
    "bird": BIRDS,
    "pet": PETS,
    "creature": SMALL_CREATURES,
    "fruit": FRUITS,
    "vegetable": VEGETABLES,
    "snack": SNACKS,
    "supper": SUPPERS,
    "toy": TOYS,
    "clothing": CLOTHES,
    "instrument": INSTRUMENTS,
    "treasure": TREASURES,
    "tool": TOOLS,
    "dish": DISHES,
    "flower": FLOWERS,
    "home": HOMES,
    "land": LANDS,
    "wild": WILDS,
    "nook": NOOKS,
    "corner": CORNERS,
    "shop": SHOPS,
    "tree": TREES,
    "trait": TRAITS,
    "air": AIRS,
    "hobby": HOBBIES,
    "game": GAMES,
    "chore": CHORES,
    "time": TIMES,
    "winter": WINTERS,
    "night": NIGHTS,
    "sky": SKIES,
    "storm": STORMS,
    "joy": JOYS,
    "sorrow": SORROWS,
    "worry": WORRIES,
    "guilt": GUILTS,
    "manner": MANNERS,
    "colour": COLOURS,
    "toy look": TOY_LOOKS,
    "clothing look": CLOTHES_LOOKS,
    "instrument look": INSTRUMENT_LOOKS,
    "treasure look": TREASURE_LOOKS,
    "tool look": TOOL_LOOKS,
    "dish look": DISH_LOOKS,
    "flavour": FLAVOURS,
    "topic": TOPICS,
    "riddle": RIDDLES,
}
